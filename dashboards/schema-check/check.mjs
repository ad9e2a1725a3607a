// Holds dashboards against the types that Grafana publishes, of its oldest and its
// newest version that they are for. Each part of a dashboard becomes a constant of
// its type, and TypeScript says what does not fit: a name or a value that is none.
//
// Usage: node check.mjs DASHBOARD...

import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

const here = path.dirname(fileURLToPath(import.meta.url));
const versions = ['grafana-10', 'grafana-13'];

// The types of the options of a panel, and of its fields where it has some.
const panels = {
  barchart: { file: 'barchart/panelcfg/x/BarChartPanelCfg_types.gen', field: true },
  stat: { file: 'stat/panelcfg/x/StatPanelCfg_types.gen', field: false },
  'state-timeline': { file: 'statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen', field: true },
  table: { file: 'table/panelcfg/x/TablePanelCfg_types.gen', field: true },
  timeseries: { file: 'timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen', field: true },
};

// Their queries. Later versions have these types in another package.
const queries = 'prometheus/dataquery/x/PrometheusDataQuery_types.gen';

const prelude = `
import type * as schema from '@grafana/schema';

// JSON has the values of enumerations, not their members.
type Plain<T> =
  T extends string ? \`\${T}\` :
  T extends number ? (\`\${T}\` extends \`\${infer N extends number}\` ? N : T) :
  T extends (infer U)[] ? Plain<U>[] :
  T extends object ? { [K in keyof T]: Plain<T[K]> } : T;

// What Prometheus adds to an annotation:
// grafana.com/docs/grafana/latest/dashboards/build-dashboards/annotate-visualizations.
type Annotation = Plain<Omit<schema.AnnotationQuery, 'target'>> & { titleFormat: string; textFormat: string; tagKeys: string };

// Custom is what only one type of panel knows of its fields.
type Field<Custom> = Plain<Omit<schema.FieldConfig, 'custom'>> & { custom?: Partial<Plain<Custom>> };
`;

// fold makes the properties of an override the field that they describe.
function fold(properties) {
  const field = {};
  for (const { id, value } of properties) {
    const [custom, name] = id.split('.');
    if (name === undefined) {
      field[id] = value;
    } else {
      field[custom] = { ...field[custom], [name]: value };
    }
  }
  return field;
}

// source is the program that has each part of the dashboard, and where in the
// dashboard the part of each line is.
function source(dashboard, hasQueries) {
  const imports = [];
  const lines = [];
  const names = [];
  const add = (where, type, value) => {
    if (value !== undefined) {
      names.push(where);
      lines.push(`export const part${names.length}: ${type} = ${JSON.stringify(value)};`);
    }
  };
  if (hasQueries) {
    imports.push(`import type { PrometheusDataQuery } from '@grafana/schema/dist/esm/raw/composable/${queries}';`);
  } else {
    imports.push('type PrometheusDataQuery = schema.DataQuery & Record<string, unknown>;');
  }
  const modules = {};
  for (const [type, { file }] of Object.entries(panels)) {
    modules[type] = `panel${Object.keys(modules).length}`;
    imports.push(`import type * as ${modules[type]} from '@grafana/schema/dist/esm/raw/composable/${file}';`);
  }

  const { panels: all, templating, annotations, ...rest } = dashboard;
  add('the dashboard', "Plain<Omit<schema.Dashboard, 'panels' | 'templating' | 'annotations'>>", rest);
  for (const v of templating.list) {
    add(`variable ${v.name}`, 'Plain<schema.VariableModel>', v);
  }
  for (const { target, ...a } of annotations.list) {
    add(`annotation ${a.name}`, 'Annotation', a);
    add(`annotation ${a.name}: the query`, 'Plain<PrometheusDataQuery>', target);
  }
  for (const { options, fieldConfig, targets, ...panel } of all) {
    if (panel.type === 'row') {
      add(`row ${panel.title}`, 'Plain<schema.RowPanel>', panel);
      continue;
    }
    const where = `panel ${panel.title}`;
    const known = panels[panel.type];
    if (known === undefined) {
      throw new Error(`${where}: check.mjs does not know the type ${panel.type}`);
    }
    const module = modules[panel.type];
    const field = `Field<${known.field ? `${module}.FieldConfig` : 'Record<string, never>'}>`;
    add(where, "Plain<Omit<schema.Panel, 'options' | 'fieldConfig' | 'targets'>>", panel);
    add(`${where}: the options`, `Partial<Plain<${module}.Options>>`, options);
    add(`${where}: the fields`, field, fieldConfig.defaults);
    for (const o of fieldConfig.overrides) {
      add(`${where}: the override of ${o.matcher.options}`, field, fold(o.properties));
    }
    for (const target of targets) {
      add(`${where}: query ${target.refId}`, 'Plain<PrometheusDataQuery>', target);
    }
  }
  const head = `${imports.join('\n')}\n${prelude}`;
  return { text: head + lines.join('\n'), first: head.split('\n').length, names };
}

// check returns what does not fit.
function check(file, version) {
  const root = path.join(here, 'node_modules', version);
  const hasQueries = fs.existsSync(path.join(root, 'dist/esm/raw/composable', `${queries}.d.ts`));
  const { text, first, names } = source(JSON.parse(fs.readFileSync(file, 'utf8')), hasQueries);
  const options = {
    noEmit: true,
    strict: true,
    skipLibCheck: true,
    types: [],
    lib: ['lib.es2022.d.ts'],
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.ESNext,
    moduleResolution: ts.ModuleResolutionKind.Bundler,
    // The packages import each other by this name.
    baseUrl: here,
    paths: { '@grafana/schema': [root], '@grafana/schema/*': [`${root}/*`] },
  };
  const host = ts.createCompilerHost(options);
  const virtual = path.join(here, 'dashboard.ts');
  const real = host.getSourceFile.bind(host);
  host.getSourceFile = (name, ...more) => (name === virtual ? ts.createSourceFile(name, text, options.target) : real(name, ...more));
  const program = ts.createProgram([virtual], options, host);
  return ts.getPreEmitDiagnostics(program).map((d) => {
    const said = ts.flattenDiagnosticMessageText(d.messageText, '\n  ');
    const line = d.file?.fileName === virtual ? d.file.getLineAndCharacterOfPosition(d.start).line + 1 - first : -1;
    return `${file}, ${version}: ${names[line] ?? d.file?.fileName ?? 'the check itself'}: ${said}`;
  });
}

const files = process.argv.slice(2);
if (files.length === 0) {
  console.error('Usage: node check.mjs DASHBOARD...');
  process.exit(2);
}
const problems = files.flatMap((file) => versions.flatMap((version) => check(file, version)));
for (const p of problems) {
  console.error(p);
}
if (problems.length > 0) {
  process.exit(1);
}
console.log(`${files.length} dashboards fit the types of ${versions.join(' and ')}`);
