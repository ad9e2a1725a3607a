package dashboards

// The types here are Grafana's model of a dashboard, as far as these dashboards
// use it: grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model.
// schema-check holds what is written against the types that Grafana publishes.

// schemaVersion is that of Grafana 10; later ones bring it up to theirs when they
// load it.
const schemaVersion = 38

type dashboard struct {
	UID           string           `json:"uid"`
	Title         string           `json:"title"`
	Description   string           `json:"description"`
	Tags          []string         `json:"tags"`
	SchemaVersion int              `json:"schemaVersion"`
	Editable      bool             `json:"editable"`
	GraphTooltip  int              `json:"graphTooltip"`
	Refresh       string           `json:"refresh"`
	Timezone      string           `json:"timezone"`
	Time          timeRange        `json:"time"`
	Links         []dashboardLink  `json:"links"`
	Templating    list[variable]   `json:"templating"`
	Annotations   list[annotation] `json:"annotations"`
	Panels        []panel          `json:"panels"`
}

type list[T any] struct {
	List []T `json:"list"`
}

type timeRange struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// dashboardLink is one beside the variables.
type dashboardLink struct {
	Title       string   `json:"title"`
	Tooltip     string   `json:"tooltip"`
	Type        string   `json:"type"`
	Icon        string   `json:"icon"`
	URL         string   `json:"url"`
	Tags        []string `json:"tags"`
	AsDropdown  bool     `json:"asDropdown"`
	IncludeVars bool     `json:"includeVars"`
	KeepTime    bool     `json:"keepTime"`
	TargetBlank bool     `json:"targetBlank"`
}

// dataLink is one of a value.
type dataLink struct {
	Title       string `json:"title"`
	URL         string `json:"url"`
	TargetBlank bool   `json:"targetBlank"`
}

type dataSource struct {
	Type string `json:"type"`
	UID  string `json:"uid"`
}

// chosen is the data source that the variable names.
var chosen = dataSource{"prometheus", "${datasource}"}

type variable struct {
	Name        string      `json:"name"`
	Label       string      `json:"label"`
	Description string      `json:"description"`
	Type        string      `json:"type"`
	DataSource  *dataSource `json:"datasource,omitempty"`
	Query       string      `json:"query"` // or the type of data sources
	Regex       string      `json:"regex,omitempty"`
	Refresh     int         `json:"refresh"`
	Sort        int         `json:"sort,omitempty"`
	Multi       bool        `json:"multi"`
	IncludeAll  bool        `json:"includeAll"`
	AllValue    string      `json:"allValue,omitempty"`
	Current     *option     `json:"current,omitempty"`
}

type option struct {
	Text  []string `json:"text"`
	Value []string `json:"value"`
}

// annotation is a query whose results stand in all panels that have a time axis.
type annotation struct {
	Name        string     `json:"name"`
	DataSource  dataSource `json:"datasource"`
	Enable      bool       `json:"enable"`
	IconColor   string     `json:"iconColor"`
	Target      target     `json:"target"`
	TitleFormat string     `json:"titleFormat"`
	TextFormat  string     `json:"textFormat"`
	TagKeys     string     `json:"tagKeys"`
}

type gridPosition struct {
	H int `json:"h"`
	W int `json:"w"`
	X int `json:"x"`
	Y int `json:"y"`
}

type panel struct {
	ID              int              `json:"id"`
	Type            string           `json:"type"`
	Title           string           `json:"title"`
	Description     string           `json:"description,omitempty"`
	GridPos         gridPosition     `json:"gridPos"`
	DataSource      *dataSource      `json:"datasource,omitempty"`
	Targets         []target         `json:"targets,omitempty"`
	FieldConfig     *fieldConfig     `json:"fieldConfig,omitempty"`
	Options         any              `json:"options,omitempty"`
	Transformations []transformation `json:"transformations,omitempty"`
	Links           []dashboardLink  `json:"links,omitempty"`
	// Of rows.
	Collapsed *bool    `json:"collapsed,omitempty"`
	Panels    *[]panel `json:"panels,omitempty"`
}

type target struct {
	RefID        string     `json:"refId"`
	DataSource   dataSource `json:"datasource"`
	Expr         string     `json:"expr"`
	LegendFormat string     `json:"legendFormat,omitempty"`
	Format       string     `json:"format,omitempty"`
	Instant      bool       `json:"instant"`
	Range        bool       `json:"range"`
}

type fieldConfig struct {
	Defaults  field      `json:"defaults"`
	Overrides []override `json:"overrides"`
}

type field struct {
	Unit       string      `json:"unit"`
	Decimals   *int        `json:"decimals,omitempty"`
	Min        *float64    `json:"min,omitempty"`
	Max        *float64    `json:"max,omitempty"`
	NoValue    string      `json:"noValue"`
	Color      *fieldColor `json:"color,omitempty"`
	Thresholds *thresholds `json:"thresholds,omitempty"`
	Mappings   []mapping   `json:"mappings,omitempty"`
	Links      []dataLink  `json:"links,omitempty"`
	Custom     any         `json:"custom,omitempty"`
}

type fieldColor struct {
	Mode       string `json:"mode"`
	FixedColor string `json:"fixedColor,omitempty"`
	SeriesBy   string `json:"seriesBy,omitempty"`
}

type thresholds struct {
	Mode  string      `json:"mode"`
	Steps []threshold `json:"steps"`
}

// threshold is a colour from a value on; the first has none.
type threshold struct {
	Value *float64 `json:"value"`
	Color string   `json:"color"`
}

type mapping struct {
	Type    string                   `json:"type"`
	Options map[string]mappingResult `json:"options"`
}

type mappingResult struct {
	Text  string `json:"text"`
	Color string `json:"color,omitempty"`
	Index int    `json:"index"`
}

type override struct {
	Matcher    matcher    `json:"matcher"`
	Properties []property `json:"properties"`
}

type matcher struct {
	ID      string `json:"id"`
	Options string `json:"options"`
}

type property struct {
	ID    string `json:"id"`
	Value any    `json:"value"`
}

type transformation struct {
	ID      string `json:"id"`
	Options any    `json:"options"`
}

// organize is the transformation that names, orders and hides columns.
type organize struct {
	ExcludeByName map[string]bool   `json:"excludeByName"`
	IndexByName   map[string]int    `json:"indexByName"`
	RenameByName  map[string]string `json:"renameByName"`
}

// Options of the types of panels.

type legend struct {
	ShowLegend  bool     `json:"showLegend"`
	DisplayMode string   `json:"displayMode"`
	Placement   string   `json:"placement"`
	Calcs       []string `json:"calcs"`
}

type tooltip struct {
	Mode string `json:"mode"`
	Sort string `json:"sort"`
}

type timeSeriesOptions struct {
	Legend  legend  `json:"legend"`
	Tooltip tooltip `json:"tooltip"`
}

type timeSeriesField struct {
	DrawStyle       string           `json:"drawStyle"`
	LineWidth       int              `json:"lineWidth"`
	FillOpacity     int              `json:"fillOpacity"`
	ShowPoints      string           `json:"showPoints"`
	SpanNulls       bool             `json:"spanNulls"`
	AxisLabel       string           `json:"axisLabel,omitempty"`
	Stacking        *stacking        `json:"stacking,omitempty"`
	ThresholdsStyle *thresholdsStyle `json:"thresholdsStyle,omitempty"`
}

type stacking struct {
	Group string `json:"group"`
	Mode  string `json:"mode"`
}

type thresholdsStyle struct {
	Mode string `json:"mode"`
}

type lineStyle struct {
	Fill string `json:"fill"`
	Dash []int  `json:"dash"`
}

type reduceOptions struct {
	Calcs  []string `json:"calcs"`
	Fields string   `json:"fields"`
	Values bool     `json:"values"`
}

type statOptions struct {
	ReduceOptions reduceOptions `json:"reduceOptions"`
	Orientation   string        `json:"orientation"`
	ColorMode     string        `json:"colorMode"`
	GraphMode     string        `json:"graphMode"`
	JustifyMode   string        `json:"justifyMode"`
	TextMode      string        `json:"textMode"`
}

type tableOptions struct {
	ShowHeader bool     `json:"showHeader"`
	CellHeight string   `json:"cellHeight"`
	SortBy     []sortBy `json:"sortBy"`
}

type sortBy struct {
	DisplayName string `json:"displayName"`
	Desc        bool   `json:"desc"`
}

type tableField struct {
	Align       string      `json:"align"`
	CellOptions cellOptions `json:"cellOptions"`
	Inspect     bool        `json:"inspect"`
}

type cellOptions struct {
	Type string `json:"type"`
}

type stateTimelineOptions struct {
	AlignValue  string  `json:"alignValue"`
	MergeValues bool    `json:"mergeValues"`
	RowHeight   float64 `json:"rowHeight"`
	ShowValue   string  `json:"showValue"`
	Legend      legend  `json:"legend"`
	Tooltip     tooltip `json:"tooltip"`
}

type stateTimelineField struct {
	FillOpacity int `json:"fillOpacity"`
	LineWidth   int `json:"lineWidth"`
}

type barChartOptions struct {
	XField              string  `json:"xField"`
	Orientation         string  `json:"orientation"`
	Stacking            string  `json:"stacking"`
	ShowValue           string  `json:"showValue"`
	BarWidth            float64 `json:"barWidth"`
	GroupWidth          float64 `json:"groupWidth"`
	FullHighlight       bool    `json:"fullHighlight"`
	XTickLabelRotation  int     `json:"xTickLabelRotation"`
	XTickLabelMaxLength int     `json:"xTickLabelMaxLength"`
	Legend              legend  `json:"legend"`
	Tooltip             tooltip `json:"tooltip"`
}

type barChartField struct {
	FillOpacity int `json:"fillOpacity"`
	LineWidth   int `json:"lineWidth"`
}
