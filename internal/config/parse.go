package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Error is a mistake in a configuration file.
type Error struct {
	File    string
	Line    int // 0 where it is not known
	Problem string
}

// Error returns the form file:line: problem.
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Problem
	}
	return e.File + ":" + strconv.Itoa(e.Line) + ": " + e.Problem
}

// keyError is a value that its key cannot have.
type keyError struct {
	key     string // such as pools.exclude[1]
	problem string // continues a sentence that begins with the key
}

// Parse reads a configuration; file is its name for errors, which are of type
// *Error.
func Parse(file string, data []byte) (*Config, error) {
	cfg, _, err := parse(file, data)
	return cfg, err
}

// parse also returns the line of each key that the file sets.
func parse(file string, data []byte) (*Config, map[string]int, error) {
	cfg := Default()
	d := decoder{file: file, lines: make(map[string]int)}

	documents := yaml.NewDecoder(bytes.NewReader(data))
	var first, second yaml.Node
	switch err := documents.Decode(&first); {
	case errors.Is(err, io.EOF):
		return cfg, d.lines, nil
	case err != nil:
		return nil, nil, d.syntaxError(err)
	}
	switch err := documents.Decode(&second); {
	case err == nil:
		return nil, nil, d.errorf(&second, "a second YAML document begins here; the configuration is a single one")
	case !errors.Is(err, io.EOF):
		return nil, nil, d.syntaxError(err)
	}

	if err := d.decode(first.Content[0], reflect.ValueOf(cfg).Elem(), ""); err != nil {
		return nil, nil, err
	}
	if bad := cfg.validate(); bad != nil {
		return nil, nil, &Error{file, d.line(bad.key), bad.key + " " + bad.problem}
	}
	return cfg, d.lines, nil
}

// decoder stores YAML nodes in Go values by the values' types. The decoder of
// package yaml can be strict too, but names Go types in its errors and no
// keys.
type decoder struct {
	file  string
	lines map[string]int // line of each key that was set
}

func (d *decoder) errorf(n *yaml.Node, format string, args ...any) error {
	return &Error{d.file, n.Line, fmt.Sprintf(format, args...)}
}

// parserProblems begin the errors whose line package yaml counts from 0: those
// of its parser, while those of its scanner count from 1.
var parserProblems = []string{
	"did not find expected key",
	"did not find expected node content",
	"did not find expected ',' or",
	"did not find expected '-' indicator",
	"did not find expected <document start>",
}

// line returns the line of a key, or of the one around it where the file does
// not set it.
func (d *decoder) line(key string) int {
	for key != "" && d.lines[key] == 0 {
		key = key[:max(strings.LastIndexAny(key, ".["), 0)]
	}
	return d.lines[key]
}

// syntaxError takes the line out of an error of package yaml ("yaml: line 3:
// ...").
func (d *decoder) syntaxError(err error) error {
	problem := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 0
	if rest, ok := strings.CutPrefix(problem, "line "); ok {
		if number, what, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				line, problem = n, what
			}
		}
	}
	if slices.ContainsFunc(parserProblems, func(p string) bool { return strings.HasPrefix(problem, p) }) {
		line++
	}
	return &Error{d.file, line, "not valid YAML: " + strings.Join(strings.Fields(problem), " ")}
}

// nodeDecoder is a value that decodes itself. Files that it names are beside the
// configuration, in dir, unless their path is absolute.
type nodeDecoder interface {
	decodeNode(n *yaml.Node, dir string) error
}

// decode stores a node in v, the value of the given key. A key without a value
// keeps its default.
func (d *decoder) decode(n *yaml.Node, v reflect.Value, key string) error {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	d.lines[key] = n.Line
	if node, ok := v.Addr().Interface().(nodeDecoder); ok {
		if err := node.decodeNode(n, filepath.Dir(d.file)); err != nil {
			return d.errorf(n, "%s: %s", key, err)
		}
		return nil
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return nil
	}
	if text, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if n.Kind != yaml.ScalarNode {
			return d.wrongKind(n, key, "a single value")
		}
		if err := text.UnmarshalText([]byte(n.Value)); err != nil {
			return d.errorf(n, "%s: %s", key, err)
		}
		return nil
	}
	switch v.Kind() {
	case reflect.Struct:
		return d.decodeStruct(n, v, key)
	case reflect.Slice:
		return d.decodeSlice(n, v, key)
	default:
		if n.Kind != yaml.ScalarNode {
			return d.wrongKind(n, key, "a single value")
		}
		// Package yaml would cut 1.5 to 1.
		fraction := v.CanInt() && n.ShortTag() == "!!float"
		if err := n.Decode(v.Addr().Interface()); err != nil || fraction {
			return d.errorf(n, "%s: %q is no %s", key, n.Value, v.Kind())
		}
		return nil
	}
}

func (d *decoder) decodeStruct(n *yaml.Node, v reflect.Value, key string) error {
	if n.Kind != yaml.MappingNode {
		return d.wrongKind(n, key, "a mapping of keys to values")
	}
	var known []string
	fields := make(map[string]reflect.Value, v.NumField())
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		known = append(known, name)
		fields[name] = v.Field(i)
	}
	given := make(map[string]int, v.NumField()) // line of each key
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		field, ok := fields[name.Value]
		if !ok || name.Kind != yaml.ScalarNode {
			return d.errorf(name, "unknown key %q%s (known keys: %s)", name.Value, within(key), strings.Join(known, ", "))
		}
		if line, ok := given[name.Value]; ok {
			return d.errorf(name, "key %q%s is given a second time, after line %d", name.Value, within(key), line)
		}
		given[name.Value] = name.Line
		if err := d.decode(value, field, join(key, name.Value)); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) decodeSlice(n *yaml.Node, v reflect.Value, key string) error {
	if n.Kind != yaml.SequenceNode {
		return d.wrongKind(n, key, "a list")
	}
	v.SetZero()
	for i, item := range n.Content {
		v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
		if e, ok := v.Index(i).Addr().Interface().(interface{ setDefaults() }); ok {
			e.setDefaults()
		}
		if err := d.decode(item, v.Index(i), fmt.Sprintf("%s[%d]", key, i)); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) wrongKind(n *yaml.Node, key, want string) error {
	got := "a single value"
	switch n.Kind {
	case yaml.MappingNode:
		got = "a mapping"
	case yaml.SequenceNode:
		got = "a list"
	}
	if key == "" {
		key = "the file"
	}
	return d.errorf(n, "%s must hold %s, not %s", key, want, got)
}

func within(key string) string {
	if key == "" {
		return ""
	}
	return fmt.Sprintf(" in %q", key)
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}
