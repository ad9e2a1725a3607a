package config

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	promconfig "github.com/prometheus/common/config"
)

// aSecret is in each value that is wrong.
const aSecret = "s3cret-of-mine"

// wrongShapes are values of any key. %s is where the secret is.
var wrongShapes = []string{
	"%s", "'%s'", "{%s: 1}", "{%s}", "{a:%s}", "{'%s': {x: %s}}", "[%s]", "[[%s]]", "[{%s: 1}]", "*%s", "&%s x", "!!int %s", "!!binary '%s'", "!%s x",
	"'https://user:%s@%%zz'", "\"https://h/\\x7f%s\"", "https://user:%s@example.org", "https://example.org:%s/", "'%s://example.org'", "/%s", "'{{ .%s }}'",
	"\n        - %s", "\n        %s: 1", "\n        ? [%s]\n        : 1", "\n        <<: %s", "\n        a: %s\n        a: %s", "{<<: [%s]}",
	"{values: %s}", "{X-Test: %s}", "{X-Test: {values: [[%s]]}}", "{Host: {values: [%s]}}", "{Host: [{%s: 1}]}",
}

// keysOf are those of a struct and of what is in it, such as basic_auth.password.
func keysOf(t reflect.Type, prefix string) (keys []string) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[promconfig.URL]() {
		return nil
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case name != "":
			keys = append(keys, prefix+name)
			keys = append(keys, keysOf(f.Type, prefix+name+".")...)
		case options == "inline":
			keys = append(keys, keysOf(f.Type, prefix)...)
		}
	}
	return keys
}

// places are where a secret may stand, as files with one %s for the value.
func places() map[string]string {
	const (
		action   = "alertmanager:\n  actions:\n    - name: a\n      match: [a=b]\n      action: webhook\n"
		silences = "alertmanager:\n  silences:\n   matchers: [[alertname=a]]\n   alertmanagers:\n    - {}\n    -\n"
		receiver = "notify:\n  receivers:\n    - name: a\n      type: gotify\n"
		address  = "      url: https://example.org\n"
		token    = "      token: abc\n"
	)
	all := map[string]string{
		"url of an action":        action + "      url: %s\n",
		"url of silences":         silences + "      url: %s\n",
		"url of a receiver":       receiver + token + "      url: %s\n",
		"url of Discord":          strings.Replace(receiver, "gotify", "discord", 1) + "      url: %s\n",
		"url_file":                receiver + token + "      url_file: %s\n",
		"token":                   receiver + address + "      token: %s\n",
		"token_file":              receiver + address + "      token_file: %s\n",
		"topic":                   strings.Replace(receiver, "gotify", "ntfy", 1) + address + "      topic: %s\n",
		"topic that goes nowhere": receiver + address + token + "      topic: %s\n",
	}
	clients := []string{"http_config"}
	for _, key := range keysOf(reflect.TypeFor[promconfig.HTTPClientConfig](), "") {
		clients = append(clients, "http_config."+key)
	}
	for _, key := range clients {
		names := strings.Split(key, ".")
		value := ""
		for i, name := range names {
			value += strings.Repeat(" ", 6+i) + name + ":\n"
		}
		value = strings.TrimSuffix(value, "\n") + " %s\n"
		for where, before := range map[string]string{"an action": action + address, "a receiver": receiver + address + token} {
			all[key+" of "+where] = before + value
		}
	}
	return all
}

func TestErrorsRepeatNoSecret(t *testing.T) {
	bad := 0
	for place, file := range places() {
		for _, shape := range wrongShapes {
			text := strings.Replace(file, "%s", strings.ReplaceAll(strings.ReplaceAll(shape, "%s", aSecret), "%%", "%"), 1)
			_, err := Parse("config.yml", []byte(text))
			if err == nil {
				continue
			}
			bad++
			for _, leak := range []string{aSecret, "unmarshal", "!!", "promconfig", "config.H", "interface", "struct"} {
				if strings.Contains(err.Error(), leak) {
					t.Errorf("%s: the error shows %q: %s\n%s", place, leak, err, text)
				}
			}
			var located *Error
			if !errors.As(err, &located) || located.Line == 0 && !strings.Contains(located.Problem, "anchor") || located.Line > strings.Count(text, "\n")+1 {
				t.Errorf("%s: the error has no line: %v\n%s", place, err, text)
			}
			// The only line in it is its own.
			if strings.Contains(located.Problem, "line ") && !strings.Contains(located.Problem, "second time") && !strings.Contains(located.Problem, "not valid YAML") {
				t.Errorf("%s: the error has another line: %s", place, err)
			}
		}
	}
	if bad < 1000 {
		t.Errorf("%d are wrong, which shows little", bad)
	}
}

// A wrong key of http_config is found in its own line, and the error says what it
// must be.
func TestErrorsOfHTTPConfigSayWhatIsExpected(t *testing.T) {
	const before = "alertmanager:\n  actions:\n    - name: a\n      match: [a=b]\n      action: webhook\n      url: https://example.org\n      http_config:\n"
	const key = "alertmanager.actions[0].http_config"
	for text, want := range map[string]string{
		"        enable_http2: true\n        proxy_url: '%zz'":                "9: " + key + ".proxy_url must be a URL such as http://proxy.example.org:3128",
		"        follow_redirects: perhaps":                                   "8: " + key + ".follow_redirects must be a bool",
		"        basic_auth:\n          username: a\n          password: [a]": "10: " + key + ".basic_auth.password must hold a single value, not a list",
		"        basic_auth: a":                                               "8: " + key + ".basic_auth must hold a mapping of keys to values, not a single value",
		"        tls_config: {min_version: 12}":                               "8: " + key + ".tls_config.min_version must be TLS10, TLS11, TLS12 or TLS13",
		"        http_headers:\n          X-A: {values: a}":                   "9: " + key + ".http_headers.[0].values must hold a list, not a single value",
		"        tls_config: {ca: a}":                                         "8: " + key + " is wrong: tls_config: ca, or the file of ca_file, must hold certificates in PEM",
		"        tls_config: {cert: a, key: b}":                               "8: " + key + " is wrong: tls_config: cert and key, or their files, must be a pair in PEM",
		"        tls_config: {cert: a}":                                       "8: " + key + " is wrong: tls_config: exactly one of key or key_file must be configured when a client certificate is configured",
		"        authorization: {credentials_ref: a}":                         "8: " + key + " is wrong: a key that ends in _ref needs a secret manager, and there is none; use the one that ends in _file",
	} {
		_, err := Parse("config.yml", []byte(before+text))
		if err == nil || !strings.HasPrefix(err.Error(), "config.yml:"+want) {
			t.Errorf("%s\n got %v\nwant config.yml:%s", text, err, want)
		}
	}
}
