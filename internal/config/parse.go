package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	promconfig "github.com/prometheus/common/config"
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

	first, err := d.document(data)
	if err != nil {
		return nil, nil, err
	}
	if first == nil {
		return cfg, d.lines, nil
	}
	if err := d.decode(first, reflect.ValueOf(cfg).Elem(), ""); err != nil {
		return nil, nil, err
	}
	if bad := cfg.validate(); bad != nil {
		return nil, nil, &Error{file, d.line(bad.key), bad.key + " " + bad.problem}
	}
	return cfg, d.lines, nil
}

// document returns the only document of a file; nil where there is none.
func (d *decoder) document(data []byte) (*yaml.Node, error) {
	documents := yaml.NewDecoder(bytes.NewReader(data))
	var first, second yaml.Node
	switch err := documents.Decode(&first); {
	case errors.Is(err, io.EOF):
		return nil, nil //nolint:nilnil // an empty file is a good one
	case err != nil:
		return nil, d.syntaxError(err)
	}
	switch err := documents.Decode(&second); {
	case err == nil:
		return nil, d.errorf(&second, "a second YAML document begins here; the configuration is a single one")
	case !errors.Is(err, io.EOF):
		return nil, d.syntaxError(err)
	}
	return first.Content[0], nil
}

// decoder stores YAML nodes in Go values by the values' types. The decoder of
// package yaml can be strict too, but names Go types in its errors and no
// keys.
type decoder struct {
	file  string
	lines map[string]int // line of each key that was set
	// quiet is set where a secret may stand in any place, by mistake too: then no
	// error repeats what stands there.
	quiet bool
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
	if strings.HasPrefix(problem, "unknown anchor") {
		// A password may begin with *.
		problem = "an alias (*) is of an anchor that there is not; put quotes around text that begins with *"
	}
	return &Error{d.file, line, "not valid YAML: " + strings.Join(strings.Fields(problem), " ")}
}

// decode stores a node in v, the value of the given key. A key without a value
// keeps its default.
func (d *decoder) decode(n *yaml.Node, v reflect.Value, key string) error {
	n = resolve(n)
	d.lines[key] = n.Line
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return nil
	}
	switch special := v.Addr().Interface().(type) {
	case *HTTPClient:
		return d.decodeHTTP(n, special, key)
	case *promconfig.URL:
		return d.decodeURL(n, special, key)
	case *promconfig.TLSVersion:
		return d.decodeTLSVersion(n, special, key)
	case *any: // a claim of OAuth 2
		if err := n.Decode(special); err != nil {
			return d.errorf(n, "%s cannot be read", key)
		}
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
	case reflect.Map:
		return d.decodeMap(n, v, key)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return d.decode(n, v.Elem(), key)
	default:
		return d.decodeValue(n, v, key)
	}
}

func (d *decoder) decodeValue(n *yaml.Node, v reflect.Value, key string) error {
	if n.Kind != yaml.ScalarNode {
		return d.wrongKind(n, key, "a single value")
	}
	// Package yaml would cut 1.5 to 1.
	fraction := v.CanInt() && n.ShortTag() == "!!float"
	// Its own decoding of a type could repeat the value in an error.
	value := reflect.New(v.Type())
	if v.Kind() == reflect.String {
		value = reflect.ValueOf(new(string))
	}
	err := n.Decode(value.Interface())
	switch {
	case err == nil && !fraction:
		v.Set(value.Elem().Convert(v.Type()))
		return nil
	case d.quiet || v.Kind() == reflect.String: // any text may be a secret
		return d.errorf(n, "%s must be a %s", key, v.Kind())
	default:
		return d.errorf(n, "%s: %q is no %s", key, n.Value, v.Kind())
	}
}

func (d *decoder) decodeStruct(n *yaml.Node, v reflect.Value, key string) error {
	fields := make(map[string]reflect.Value, v.NumField())
	known, others := addFields(v, fields, nil)
	return d.eachKey(n, key, func(name, value *yaml.Node) error {
		field, ok := fields[name.Value]
		switch {
		case ok:
			return d.decode(value, field, join(key, name.Value))
		case others.IsValid():
			return d.decodeElement(name, value, others, key)
		case d.quiet || !plainKey.MatchString(name.Value):
			return d.errorf(name, "unknown key%s (known keys: %s)", within(key), strings.Join(known, ", "))
		default:
			return d.errorf(name, "unknown key %q%s (known keys: %s)", name.Value, within(key), strings.Join(known, ", "))
		}
	})
}

// plainKey is what a key looks like. What does not, such as token:SECRET without a
// space, is not repeated.
var plainKey = regexp.MustCompile(`^[-A-Za-z0-9_ ]+$`)

// addFields adds the fields of a struct by the names of their keys, which it
// returns in their order. A map that takes all other keys is others.
func addFields(v reflect.Value, fields map[string]reflect.Value, before []string) (known []string, others reflect.Value) {
	known = before
	for i := range v.NumField() {
		name, options, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		switch {
		case name != "":
			known = append(known, name)
			fields[name] = v.Field(i)
		case options == "inline" && v.Field(i).Kind() == reflect.Map:
			others = v.Field(i)
		case options == "inline":
			known, _ = addFields(v.Field(i), fields, known)
		}
	}
	return known, others
}

func (d *decoder) decodeMap(n *yaml.Node, v reflect.Value, key string) error {
	return d.eachKey(n, key, func(name, value *yaml.Node) error { return d.decodeElement(name, value, v, key) })
}

// decodeElement stores a value in a map.
func (d *decoder) decodeElement(name, value *yaml.Node, v reflect.Value, key string) error {
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	element := reflect.New(v.Type().Elem()).Elem()
	if d.quiet {
		// Neither does the name of a header belong into an error.
		key = join(key, fmt.Sprintf("[%d]", v.Len()))
	} else {
		key = join(key, name.Value)
	}
	if err := d.decode(value, element, key); err != nil {
		return err
	}
	v.SetMapIndex(reflect.ValueOf(name.Value).Convert(v.Type().Key()), element)
	return nil
}

// eachKey calls use for each key of a mapping and its value, also for those that
// are merged into it.
func (d *decoder) eachKey(n *yaml.Node, key string, use func(name, value *yaml.Node) error) error {
	if n.Kind != yaml.MappingNode {
		return d.wrongKind(n, key, "a mapping of keys to values")
	}
	given := make(map[string]int, len(n.Content)/2) // line of each key
	for i := 0; i+1 < len(n.Content); i += 2 {
		name := resolve(n.Content[i])
		if name.Kind != yaml.ScalarNode {
			return d.errorf(n.Content[i], "a key%s must be a word", within(key))
		}
		line, twice := given[name.Value]
		switch {
		case twice && d.quiet:
			return d.errorf(n.Content[i], "a key%s is given a second time, after line %d", within(key), line)
		case twice:
			return d.errorf(n.Content[i], "key %q%s is given a second time, after line %d", name.Value, within(key), line)
		}
		given[name.Value] = n.Content[i].Line
	}
	merged, err := d.merged(n, key, nil)
	if err != nil {
		return err
	}
	for i := 0; i+1 < len(merged); i += 2 {
		if err := use(merged[i], merged[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// merged returns the keys of a mapping and their values, and those of the mappings
// that are merged into it: what is nearer counts
// (https://yaml.org/type/merge.html). around are the mappings that it is merged
// into.
func (d *decoder) merged(n *yaml.Node, key string, around []*yaml.Node) (content []*yaml.Node, err error) {
	if slices.Contains(around, n) {
		return nil, d.errorf(n, "a mapping%s is merged into itself", within(key))
	}
	around = append(around, n)
	var sources []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := resolve(n.Content[i]), resolve(n.Content[i+1])
		switch {
		case name.ShortTag() != "!!merge":
			content = append(content, name, n.Content[i+1])
		case value.Kind == yaml.SequenceNode:
			sources = append(sources, value.Content...)
		default:
			sources = append(sources, value)
		}
	}
	for _, source := range sources {
		source = resolve(source)
		if source.Kind != yaml.MappingNode {
			return nil, d.errorf(source, "what << merges%s must be a mapping", within(key))
		}
		more, err := d.merged(source, key, around)
		if err != nil {
			return nil, err
		}
		for i := 0; i+1 < len(more); i += 2 {
			if !hasKey(content, more[i].Value) {
				content = append(content, more[i], more[i+1])
			}
		}
	}
	return content, nil
}

func hasKey(content []*yaml.Node, name string) bool {
	for i := 0; i+1 < len(content); i += 2 {
		if content[i].Value == name {
			return true
		}
	}
	return false
}

// resolve returns what an alias stands for.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
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
