package config

import (
	"fmt"
	"reflect"

	promconfig "github.com/prometheus/common/config"

	"github.com/btrfs-governor/btrfs-governor/internal/httpclient"
)

// LoadHTTP reads a file that has the keys of an http_config, and nothing else. It is
// as strict as Load, no error repeats a value, and the files that it names can be
// read.
func LoadHTTP(path string) (promconfig.HTTPClientConfig, error) {
	settings := promconfig.DefaultHTTPClientConfig
	data, err := readFile(path)
	if err != nil {
		return settings, err
	}
	d := decoder{file: path, lines: make(map[string]int), quiet: true}
	document, err := d.document(data)
	if err != nil {
		return settings, err
	}
	if document != nil {
		var client HTTPClient
		if err := d.decode(document, reflect.ValueOf(&client).Elem(), "http_config"); err != nil {
			return settings, err
		}
		settings = client.Config()
	}
	if err := httpclient.CheckFiles(&settings); err != nil {
		return settings, fmt.Errorf("%s: %w", path, err)
	}
	if _, err := httpclient.New(settings, "check", ""); err != nil {
		return settings, fmt.Errorf("%s: %w", path, err)
	}
	return settings, nil
}
