package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	promconfig "github.com/prometheus/common/config"
	"gopkg.in/yaml.v3"
)

// HTTPClient says how to talk to another service, as Prometheus and Alertmanager
// have it: see
// https://prometheus.io/docs/alerting/latest/configuration/#http_config.
type HTTPClient struct{ given *promconfig.HTTPClientConfig }

// unknownField is how package yaml names a key that it does not know. Its line is
// one of the part that it was handed.
var unknownField = regexp.MustCompile(`line \d+: field (\S+) not found in type \S+`)

func (c *HTTPClient) decodeNode(n *yaml.Node, dir string) error {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return nil
	}
	text, err := yaml.Marshal(n)
	if err != nil {
		return err
	}
	strict := yaml.NewDecoder(bytes.NewReader(text))
	strict.KnownFields(true)
	var given promconfig.HTTPClientConfig
	if err := strict.Decode(&given); err != nil && !errors.Is(err, io.EOF) {
		text := strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: ")), " ")
		text = unknownField.ReplaceAllString(strings.TrimPrefix(text, "unmarshal errors: "), "unknown key $1")
		return errors.New(text)
	}
	given.SetDirectory(dir)
	c.given = &given
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

// client makes a client that follows no redirect: what it sends is for the
// configured address alone.
func (c *HTTPClient) client(name string) (*http.Client, error) {
	client, err := promconfig.NewClientFromConfig(c.Config(), name, promconfig.WithUserAgent("btrfs-governor"))
	if err != nil {
		return nil, err
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return client, nil
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
		return &keyError{key + ".http_config", fmt.Sprintf("is wrong: %s", err)}
	}
	return nil
}
