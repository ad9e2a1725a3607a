// Package httpclient makes the clients that talk to other services, as http_config
// has them, and knows what of their settings is secret.
package httpclient

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/common/config"
)

// New makes a client that follows no redirect: what it sends is for the configured
// address alone. Its errors name keys, and repeat no value: a secret may stand
// where it does not belong.
func New(settings config.HTTPClientConfig, name, userAgent string) (*http.Client, error) {
	settings.FollowRedirects = false
	client, err := config.NewClientFromConfig(settings, name, config.WithUserAgent(userAgent))
	if err != nil {
		return nil, problem(&settings)
	}
	return client, nil
}

// problem finds out why there is no client.
func problem(settings *config.HTTPClientConfig) error {
	t := settings.TLSConfig
	if err := t.Validate(); err != nil {
		return fmt.Errorf("tls_config: %w", err)
	}
	if t.MinVersion != 0 && t.MaxVersion != 0 && t.MinVersion > t.MaxVersion {
		return errors.New("tls_config: max_version must not be less than min_version")
	}
	for _, f := range tlsFiles("tls_config.", &t) {
		if err := f.check(); err != nil {
			return err
		}
	}
	if t.CARef != "" || t.CertRef != "" || t.KeyRef != "" {
		return errReference
	}
	if _, err := config.NewTLSConfig(&config.TLSConfig{CA: t.CA, CAFile: t.CAFile}); err != nil {
		return errors.New("tls_config: ca, or the file of ca_file, must hold certificates in PEM")
	}
	if _, err := config.NewTLSConfig(&t); err != nil {
		return errors.New("tls_config: cert and key, or their files, must be a pair in PEM")
	}
	return errReference // all that is left
}

var errReference = errors.New("a key that ends in _ref needs a secret manager, and there is none; use the one that ends in _file")

// file is one that the settings name.
type file struct{ key, path string }

// check reports whether it can be read, without its path.
func (f *file) check() error {
	opened, err := os.Open(f.path)
	if err == nil {
		_, err = opened.Read(make([]byte, 1))
		_ = opened.Close()
	}
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("%s: %w", f.key, WithoutPath(err))
}

// WithoutPath returns the cause of an error of a file, such as that there is none.
func WithoutPath(err error) error {
	if of, ok := errors.AsType[*fs.PathError](err); ok {
		return of.Err
	}
	return err
}

// CheckFiles reports the first file that cannot be read. Those of passwords and
// tokens are read for each request only, and would fail then.
func CheckFiles(settings *config.HTTPClientConfig) error {
	files := slices.Concat(tlsFiles("tls_config.", &settings.TLSConfig), secretFiles(settings))
	if o := settings.OAuth2; o != nil {
		files = append(files, tlsFiles("oauth2.tls_config.", &o.TLSConfig)...)
	}
	if a := settings.BasicAuth; a != nil {
		files = append(files, file{"basic_auth.username_file", a.UsernameFile})
	}
	for i := range files {
		if files[i].path == "" {
			continue
		}
		if err := files[i].check(); err != nil {
			return err
		}
	}
	return nil
}

func tlsFiles(prefix string, t *config.TLSConfig) (files []file) {
	for _, f := range []file{{prefix + "ca_file", t.CAFile}, {prefix + "cert_file", t.CertFile}, {prefix + "key_file", t.KeyFile}} {
		if f.path != "" {
			files = append(files, f)
		}
	}
	return files
}

// secretFiles are those whose content is sent as a secret; a path may be empty.
func secretFiles(settings *config.HTTPClientConfig) []file {
	files := []file{{"bearer_token_file", settings.BearerTokenFile}}
	if a := settings.Authorization; a != nil {
		files = append(files, file{"authorization.credentials_file", a.CredentialsFile})
	}
	if a := settings.BasicAuth; a != nil {
		files = append(files, file{"basic_auth.password_file", a.PasswordFile})
	}
	if o := settings.OAuth2; o != nil {
		files = append(files, file{"oauth2.client_secret_file", o.ClientSecretFile}, file{"oauth2.client_certificate_key_file", o.ClientCertificateKeyFile})
	}
	for _, h := range headers(settings) {
		for _, path := range h.Files {
			files = append(files, file{"http_headers", path})
		}
	}
	return files
}

// headers are those of http_headers, in the order of their names.
func headers(settings *config.HTTPClientConfig) (list []config.Header) {
	if settings.HTTPHeaders == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(settings.HTTPHeaders.Headers)) {
		list = append(list, settings.HTTPHeaders.Headers[name])
	}
	return list
}

// maxSecret bounds what is read of the file of a secret, in bytes.
const maxSecret = 64 << 10

// Secrets returns what no message may show. Files are read as they are now: that is
// what a request sends.
func Secrets(settings *config.HTTPClientConfig) (secrets []string) {
	add := func(values ...string) { secrets = append(secrets, values...) }
	add(string(settings.BearerToken), string(settings.TLSConfig.Key))
	if a := settings.Authorization; a != nil {
		add(string(a.Credentials))
	}
	if a := settings.BasicAuth; a != nil {
		password := string(a.Password)
		if a.PasswordFile != "" {
			password = read(a.PasswordFile)
		}
		user := a.Username
		if a.UsernameFile != "" {
			user = read(a.UsernameFile)
		}
		// The header has both in one.
		add(password, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
	}
	proxies := []*config.ProxyConfig{&settings.ProxyConfig}
	if o := settings.OAuth2; o != nil {
		add(string(o.ClientSecret), string(o.ClientCertificateKey), string(o.TLSConfig.Key))
		for _, value := range o.EndpointParams {
			add(value)
		}
		if u, err := url.Parse(o.TokenURL); err == nil {
			add(userinfo(u)...)
		}
		proxies = append(proxies, &o.ProxyConfig)
	}
	for _, p := range proxies {
		add(userinfo(p.ProxyURL.URL)...)
		for _, values := range p.ProxyConnectHeader {
			for _, value := range values {
				add(string(value))
			}
		}
	}
	for _, h := range headers(settings) {
		add(h.Values...)
		for _, value := range h.Secrets {
			add(string(value))
		}
	}
	for _, f := range secretFiles(settings) {
		if f.path != "" {
			add(read(f.path))
		}
	}
	return slices.DeleteFunc(secrets, func(s string) bool { return s == "" })
}

// read returns the secret of a file; one that cannot be read is none.
func read(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSecret))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// userinfo are the secrets of a URL, also as they are written in it and as they
// stand in a header.
func userinfo(u *url.URL) []string {
	if u == nil || u.User == nil {
		return nil
	}
	password, _ := u.User.Password()
	plain := u.User.Username() + ":" + password
	return []string{password, u.User.String(), plain, base64.StdEncoding.EncodeToString([]byte(plain))}
}

// InTheClear reports whether anything secret goes over a network unencrypted: to
// the address, which may be nil, to a proxy or for a token. secret is whether the
// address or what is sent there is one by itself.
func InTheClear(address *url.URL, settings *config.HTTPClientConfig, secret bool) bool {
	if plain(address) && (secret || address.User != nil || address.RawQuery != "" || authenticates(settings)) {
		return true
	}
	if proxyInTheClear(&settings.ProxyConfig) {
		return true
	}
	o := settings.OAuth2
	if o == nil {
		return false
	}
	token, err := url.Parse(o.TokenURL)
	return err == nil && plain(token) || proxyInTheClear(&o.ProxyConfig)
}

// authenticates reports whether requests carry something that gives access.
func authenticates(settings *config.HTTPClientConfig) bool {
	return settings.BasicAuth != nil || settings.Authorization != nil || settings.OAuth2 != nil ||
		settings.BearerToken != "" || settings.BearerTokenFile != "" || len(headers(settings)) > 0
}

func proxyInTheClear(p *config.ProxyConfig) bool {
	u := p.ProxyURL.URL
	return u != nil && u.Scheme != "https" && !loopback(u.Hostname()) && (u.User != nil || len(p.ProxyConnectHeader) > 0)
}

func plain(u *url.URL) bool {
	return u != nil && u.Scheme == "http" && !loopback(u.Hostname())
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
