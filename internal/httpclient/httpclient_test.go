package httpclient_test

import (
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/config"

	"github.com/btrfs-governor/btrfs-governor/internal/httpclient"
)

func parse(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestWhatGoesInTheClear(t *testing.T) {
	const far, near, safe = "http://nas.example.org", "http://127.0.0.1:9093", "https://nas.example.org"
	proxy := func(address string) func(*config.HTTPClientConfig) {
		return func(c *config.HTTPClientConfig) { c.ProxyURL.URL = parse(t, address) }
	}
	header := func(h config.Header) func(*config.HTTPClientConfig) {
		return func(c *config.HTTPClientConfig) {
			c.HTTPHeaders = &config.Headers{Headers: map[string]config.Header{"X-A": h}}
		}
	}
	oauth := func(address string) func(*config.HTTPClientConfig) {
		return func(c *config.HTTPClientConfig) { c.OAuth2 = &config.OAuth2{ClientSecret: "a", TokenURL: address} }
	}
	basic := func(c *config.HTTPClientConfig) { c.BasicAuth = &config.BasicAuth{Username: "a"} }
	for name, test := range map[string]struct {
		address string
		secret  bool
		change  func(*config.HTTPClientConfig)
		want    bool
	}{
		"nothing secret":           {far, false, nil, false},
		"a secret":                 {far, true, nil, true},
		"encrypted":                {safe, true, basic, false},
		"loopback":                 {near, true, basic, false},
		"loopback by its name":     {"http://localhost", true, basic, false},
		"loopback of IPv6":         {"http://[::1]:1", true, basic, false},
		"a password in the URL":    {"http://a:b@nas.example.org", false, nil, true},
		"a query":                  {far + "/hook?token=a", false, nil, true},
		"basic_auth":               {far, false, basic, true},
		"authorization":            {far, false, func(c *config.HTTPClientConfig) { c.Authorization = &config.Authorization{} }, true},
		"bearer_token_file":        {far, false, func(c *config.HTTPClientConfig) { c.BearerTokenFile = "a" }, true},
		"a header":                 {far, false, header(config.Header{Secrets: []config.Secret{"a"}}), true},
		"a proxy":                  {safe, false, proxy("http://proxy.example.org"), false},
		"a password of a proxy":    {safe, false, proxy("http://a:b@proxy.example.org"), true},
		"a proxy with https":       {safe, false, proxy("https://a:b@proxy.example.org"), false},
		"oauth2 in the clear":      {safe, false, oauth(far), true},
		"oauth2":                   {safe, false, oauth(safe), false},
		"a token of oauth2 to far": {far, false, oauth(safe), true},
	} {
		settings := config.DefaultHTTPClientConfig
		if test.change != nil {
			test.change(&settings)
		}
		if got := httpclient.InTheClear(parse(t, test.address), &settings, test.secret); got != test.want {
			t.Errorf("%s: %t, want %t", name, got, test.want)
		}
	}
}

func TestSecretsAreAllThatGivesAccess(t *testing.T) {
	dir := t.TempDir()
	file := func(content string) string {
		path := filepath.Join(dir, content)
		if err := os.WriteFile(path, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	settings := config.HTTPClientConfig{
		BearerToken: "s01", BearerTokenFile: file("s02"),
		Authorization: &config.Authorization{Credentials: "s03", CredentialsFile: file("s04")},
		BasicAuth:     &config.BasicAuth{Username: "nas", PasswordFile: file("s05")},
		OAuth2: &config.OAuth2{
			ClientSecret: "s06", ClientSecretFile: file("s07"), ClientCertificateKey: "s08", ClientCertificateKeyFile: file("s09"),
			EndpointParams: map[string]string{"a": "s10"}, TokenURL: "https://a:s11@example.org", TLSConfig: config.TLSConfig{Key: "s12"},
			ProxyConfig: config.ProxyConfig{ProxyURL: config.URL{URL: parse(t, "http://a:s13@example.org")}},
		},
		TLSConfig: config.TLSConfig{Key: "s14"},
		ProxyConfig: config.ProxyConfig{
			ProxyURL: config.URL{URL: parse(t, "http://a:s%2F15@example.org")}, ProxyConnectHeader: config.ProxyHeader{"A": {"s16"}},
		},
		HTTPHeaders: &config.Headers{Headers: map[string]config.Header{"A": {Values: []string{"s17"}, Secrets: []config.Secret{"s18"}, Files: []string{file("s19")}}}},
	}
	got := httpclient.Secrets(&settings)
	for _, want := range strings.Fields("s01 s02 s03 s04 s05 s06 s07 s08 s09 s10 s11 s12 s13 s14 s/15 a:s%2F15 s16 s17 s18 s19 bmFzOnMwNQ==") {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing in %q", want, got)
		}
	}
	if got := httpclient.Secrets(&config.DefaultHTTPClientConfig); len(got) > 0 {
		t.Errorf("of nothing they are %q", got)
	}
}
