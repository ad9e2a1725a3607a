package config

import (
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"reflect"

	promconfig "github.com/prometheus/common/config"
	"gopkg.in/yaml.v3"

	"github.com/btrfs-governor/btrfs-governor/internal/httpclient"
)

// HTTPClient says how to talk to another service, as Prometheus and Alertmanager
// have it: see
// https://prometheus.io/docs/alerting/latest/configuration/#http_config.
type HTTPClient struct{ given *promconfig.HTTPClientConfig }

// decodeHTTP stores an http_config. The files that it names are beside the
// configuration, unless their path is absolute. Most of it gives access to
// something, so that no error repeats any of it.
func (d *decoder) decodeHTTP(n *yaml.Node, c *HTTPClient, key string) error {
	given := promconfig.DefaultHTTPClientConfig
	quiet := decoder{file: d.file, lines: d.lines, quiet: true}
	if err := quiet.decodeStruct(n, reflect.ValueOf(&given).Elem(), key); err != nil {
		return err
	}
	err := given.Validate()
	if err == nil && given.OAuth2 != nil {
		err = given.OAuth2.Validate()
	}
	if err != nil {
		return d.errorf(n, "%s: %s", key, err)
	}
	given.SetDirectory(filepath.Dir(d.file))
	c.given = &given
	return nil
}

// decodeURL stores a URL.
func (d *decoder) decodeURL(n *yaml.Node, u *promconfig.URL, key string) error {
	if n.Kind != yaml.ScalarNode {
		return d.wrongKind(n, key, "a single value")
	}
	parsed, err := url.Parse(n.Value)
	if err != nil || parsed.Scheme == "" || parsed.Host == "" {
		return d.errorf(n, "%s must be a URL such as http://proxy.example.org:3128", key)
	}
	u.URL = parsed
	return nil
}

// decodeTLSVersion stores a version of TLS.
func (d *decoder) decodeTLSVersion(n *yaml.Node, v *promconfig.TLSVersion, key string) error {
	version, ok := promconfig.TLSVersions[n.Value]
	if n.Kind != yaml.ScalarNode || !ok {
		return d.errorf(n, "%s must be TLS10, TLS11, TLS12 or TLS13", key)
	}
	*v = version
	return nil
}

// MarshalYAML implements yaml.Marshaler.
func (c HTTPClient) MarshalYAML() (any, error) {
	if c.given == nil {
		return nil, nil //nolint:nilnil // it is left out
	}
	return c.given, nil
}

// Config returns the settings, the default ones where none are given.
func (c *HTTPClient) Config() promconfig.HTTPClientConfig {
	if c.given == nil {
		return promconfig.DefaultHTTPClientConfig
	}
	return *c.given
}

// client makes a client that follows no redirect.
func (c *HTTPClient) client(name string) (*http.Client, error) {
	return httpclient.New(c.Config(), name, "btrfs-governor")
}

// validateURL returns what is wrong with the address of a service. It may hold a
// secret, which is not repeated.
func validateURL(key, address string) *keyError {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return &keyError{key, "must be an address such as https://example.org/hook"}
	}
	return nil
}

// validateHTTP returns what is wrong with a client.
func validateHTTP(key string, c *HTTPClient) *keyError {
	if _, err := c.client("check"); err != nil {
		return &keyError{key + ".http_config", "is wrong: " + err.Error()}
	}
	return nil
}

// CheckFiles reports what keeps a service from being used that the files of the
// configuration hold. Whoever reads only the configuration itself does not see it.
func (c *Config) CheckFiles() error {
	for _, r := range c.Receivers() {
		if err := r.Check(); err != nil {
			return fmt.Errorf("notify.receivers: %w", err)
		}
	}
	for i := range c.Alertmanager.Actions {
		settings := c.Alertmanager.Actions[i].HTTPConfig.Config()
		if err := httpclient.CheckFiles(&settings); err != nil {
			return fmt.Errorf("alertmanager.actions[%d].http_config: %w", i, err)
		}
	}
	for i := range c.Alertmanager.Silences.Alertmanagers {
		settings := c.Alertmanager.Silences.Alertmanagers[i].HTTPConfig.Config()
		if err := httpclient.CheckFiles(&settings); err != nil {
			return fmt.Errorf("alertmanager.silences.alertmanagers[%d].http_config: %w", i, err)
		}
	}
	return nil
}

// InTheClear returns the keys of the actions and silences that send something
// secret over a network unencrypted. The receivers of notifications tell that
// themselves, for their URL may be in a file.
func (c *Config) InTheClear() (keys []string) {
	add := func(key, address string, client *HTTPClient) {
		u, err := url.Parse(address)
		if err != nil {
			return // was validated
		}
		if settings := client.Config(); httpclient.InTheClear(u, &settings, false) {
			keys = append(keys, key)
		}
	}
	for i := range c.Alertmanager.Actions {
		if a := &c.Alertmanager.Actions[i]; a.URL != "" {
			add(fmt.Sprintf("alertmanager.actions[%d]", i), a.URL, &a.HTTPConfig)
		}
	}
	for i := range c.Alertmanager.Silences.Alertmanagers {
		p := &c.Alertmanager.Silences.Alertmanagers[i]
		add(fmt.Sprintf("alertmanager.silences.alertmanagers[%d]", i), p.URL, &p.HTTPConfig)
	}
	return keys
}
