package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	promconfig "github.com/prometheus/common/config"
)

func TestFileOfHTTPConfigIsReadAsTheKeyIs(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("password", aSecret)
	got, err := LoadHTTP(write("good.yml", "basic_auth: {username: reader, password_file: password}\nproxy_url: http://proxy.example.org:3128\n"))
	if err != nil || got.BasicAuth == nil || got.BasicAuth.PasswordFile != filepath.Join(dir, "password") || got.ProxyURL.Host != "proxy.example.org:3128" || !got.EnableHTTP2 {
		t.Errorf("%+v %v", got, err)
	}
	for _, empty := range []string{"", "# nothing\n", "null\n", "{}\n"} {
		if got, err := LoadHTTP(write("empty.yml", empty)); err != nil || !reflect.DeepEqual(got, promconfig.DefaultHTTPClientConfig) {
			t.Errorf("%q: %+v %v", empty, got, err)
		}
	}
	if _, err := LoadHTTP(write("large.yml", strings.Repeat("#", maxSize+1))); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a large one: %v", err)
	}
	if _, err := LoadHTTP(filepath.Join(dir, "none.yml")); err == nil || !strings.Contains(err.Error(), "none.yml: no such file") {
		t.Errorf("none: %v", err)
	}
}

func TestErrorsOfAFileOfHTTPConfigRepeatNoSecret(t *testing.T) {
	path := filepath.Join(t.TempDir(), "http.yml")
	bad := 0
	for _, key := range append(keysOf(reflect.TypeFor[promconfig.HTTPClientConfig](), ""), "") {
		before := ""
		if key != "" {
			for i, name := range strings.Split(key, ".") {
				before += strings.Repeat(" ", i) + name + ":\n"
			}
			before = strings.TrimSuffix(before, "\n") + " "
		}
		for _, shape := range wrongShapes {
			text := before + strings.ReplaceAll(strings.ReplaceAll(shape, "%s", aSecret), "%%", "%") + "\n"
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := LoadHTTP(path)
			if err == nil {
				continue
			}
			bad++
			if strings.Contains(err.Error(), aSecret) || !strings.HasPrefix(err.Error(), path+":") {
				t.Errorf("%s\n%s", err, text)
			}
		}
	}
	if bad < 500 {
		t.Errorf("%d are wrong, which shows little", bad)
	}
}
