// Package notify sends the alerts of Alertmanager on to ntfy, Gotify and Discord.
// What was accepted is kept on the disk until the service has taken it: it is not
// lost in a crash, and sent once. See Bridge.Accept for the exceptions.
package notify

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/common/config"

	"github.com/btrfs-governor/btrfs-governor/internal/httpclient"
)

// Kind is a service.
type Kind string

// The services.
const (
	Ntfy    Kind = "ntfy"
	Gotify  Kind = "gotify"
	Discord Kind = "discord"
)

// Receiver is somebody to whom notifications are sent. What gives access is a
// Secret: a topic of ntfy too, for who knows its name may read it.
type Receiver struct {
	Name string
	Kind Kind

	// URL is that of the server, or with Discord that of the webhook. It may be
	// read from URLFile instead.
	URL     config.Secret
	URLFile string

	Topic config.Secret // of ntfy

	// Token is an access token of ntfy, if it wants one, or the token of an
	// application of Gotify. It may be read from TokenFile instead.
	Token     config.Secret
	TokenFile string

	// HTTPClient is how to connect. Redirects are never followed.
	HTTPClient config.HTTPClientConfig

	// Title, Message and Click are templates, see view; empty ones are as
	// summary and body write them. Click is where a tap on the notification
	// leads.
	Title, Message, Click string

	// RateLimit is how many messages are sent in a minute at most; 0 is what the
	// service allows.
	RateLimit int
}

// defaultRateLimit is what the public services allow: ntfy.sh gives one message
// each 5 s back (docs.ntfy.sh/publish/#limitations), a channel of Discord takes 30
// of webhooks in a minute. A Gotify is one's own.
func (k Kind) defaultRateLimit() int {
	switch k {
	case Ntfy:
		return 12
	case Discord:
		return 25
	default:
		return 60
	}
}

// maxRateLimit bounds how many times a lane remembers.
const maxRateLimit = 10_000

var (
	// A name stands in the path of the webhook.
	validName = regexp.MustCompile(`^[A-Za-z0-9][-_.A-Za-z0-9]{0,63}$`)
	// docs.ntfy.sh/publish/#list-of-all-parameters
	validTopic = regexp.MustCompile(`^[-_A-Za-z0-9]{1,64}$`)
	// A token stands in a header.
	validToken = regexp.MustCompile(`^[[:graph:]]{1,512}$`)
)

// Validate reports what cannot be. It reads no files, and shows no secret.
func (r *Receiver) Validate() error {
	if err := r.check(); err != nil {
		return fmt.Errorf("receiver %.64q: %w", r.Name, err)
	}
	return nil
}

func (r *Receiver) check() error {
	if !validName.MatchString(r.Name) {
		return errors.New("its name must be of 1 to 64 letters, digits, dashes, dots and underscores")
	}
	switch r.Kind {
	case Ntfy, Gotify, Discord:
	default:
		return fmt.Errorf("its type is %.20q, and not ntfy, gotify or discord", string(r.Kind))
	}
	if (r.URL == "") == (r.URLFile == "") {
		return errors.New("give it one of url and url_file")
	}
	if r.URL != "" {
		if _, err := r.Kind.parseURL(string(r.URL)); err != nil {
			return fmt.Errorf("url: %w", err)
		}
	}
	if err := r.checkAccess(); err != nil {
		return err
	}
	if r.RateLimit < 0 || r.RateLimit > maxRateLimit {
		return fmt.Errorf("rate_limit is %d, and not 0 to %d messages in a minute", r.RateLimit, maxRateLimit)
	}
	if err := r.HTTPClient.Validate(); err != nil {
		return fmt.Errorf("http_config: %w", err)
	}
	_, err := r.templates()
	return err
}

func (r *Receiver) checkAccess() error {
	if r.Token != "" && r.TokenFile != "" {
		return errors.New("give it one of token and token_file")
	}
	hasToken := r.Token != "" || r.TokenFile != ""
	switch {
	case r.Token != "" && !validToken.MatchString(string(r.Token)):
		return errors.New("token: it must be of printable characters without spaces")
	case r.Kind == Ntfy && !validTopic.MatchString(string(r.Topic)):
		return errors.New("topic: ntfy needs one, of 1 to 64 letters, digits, dashes and underscores")
	case r.Kind != Ntfy && r.Topic != "":
		return errors.New("topic: only ntfy has topics")
	case r.Kind == Gotify && !hasToken:
		return errors.New("give it the token of a Gotify application, in token_file or token")
	case r.Kind == Discord && hasToken:
		return errors.New("token: the URL of a Discord webhook is all that it needs")
	case hasToken && (r.HTTPClient.Authorization != nil || r.HTTPClient.BasicAuth != nil || r.HTTPClient.OAuth2 != nil ||
		r.HTTPClient.BearerToken != "" || r.HTTPClient.BearerTokenFile != "") && r.Kind == Ntfy:
		return errors.New("give it a token or an authorization in http_config, and not both")
	}
	return nil
}

// parseURL reads the URL of a service. Its errors do not show it.
func (k Kind) parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, errors.New("it is no URL")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return nil, errors.New("it must begin with https:// or http:// and name a host")
	case u.User != nil:
		return nil, errors.New("it has a user name in it; write basic_auth in http_config instead")
	case u.Fragment != "":
		return nil, errors.New("it has a #fragment, which means nothing to a server")
	case k != Discord && u.RawQuery != "":
		return nil, errors.New("it has a ?query; give the address of the server alone")
	case k == Discord && strings.Trim(u.Path, "/") == "":
		return nil, errors.New("it must be the whole URL of the webhook, as Discord shows it")
	}
	return u, nil
}

// service is a receiver, ready to send with its secrets read.
type service struct {
	receiver  *Receiver
	kind      Kind
	topic     string
	rateLimit int
	templates templates
	userAgent string

	// closed says why it could not be opened, and that the rest is not set. Somebody
	// has to mend what it names.
	closed  error
	url     *url.URL
	token   string
	client  *http.Client
	secrets []string // that no message may show
}

// Check reports what keeps a receiver from being used, also in the files that it
// names.
func (r *Receiver) Check() error {
	s, err := r.service("")
	if err != nil {
		return err
	}
	return s.check()
}

// check reports why a service is closed.
func (s *service) check() error {
	if s.closed == nil {
		return nil
	}
	return fmt.Errorf("receiver %q: %w", s.receiver.Name, s.closed)
}

// service reads the files of a receiver and prepares its client. Where that fails
// it is closed; the error is for what is wrong with the receiver itself.
func (r *Receiver) service(version string) (*service, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	s := &service{receiver: r, kind: r.Kind, topic: string(r.Topic), rateLimit: r.RateLimit, userAgent: "btrfs-governor/" + version}
	if s.rateLimit == 0 {
		s.rateLimit = r.Kind.defaultRateLimit()
	}
	var err error
	if s.templates, err = r.templates(); err != nil {
		return nil, fmt.Errorf("receiver %q: %w", r.Name, err)
	}
	s.closed = s.open()
	return s, nil
}

// reopened returns a service that is closed as it is with its files read again.
func (s *service) reopened() *service {
	again := *s
	again.closed = again.open()
	return &again
}

// open sets what depends on files.
func (s *service) open() error {
	r := s.receiver
	address, err := secret(r.URL, r.URLFile)
	if err != nil {
		return fmt.Errorf("url_file: %w", err)
	}
	if s.url, err = r.Kind.parseURL(address); err != nil {
		return fmt.Errorf("url_file: %w", err)
	}
	if s.token, err = secret(r.Token, r.TokenFile); err != nil {
		return fmt.Errorf("token_file: %w", err)
	}
	if r.TokenFile != "" && !validToken.MatchString(s.token) {
		return errors.New("token_file: it must hold one token, of printable characters without spaces")
	}
	if err := httpclient.CheckFiles(&r.HTTPClient); err != nil {
		return fmt.Errorf("http_config: %w", err)
	}
	// Where it redirects to is not who was given the secret.
	if s.client, err = httpclient.New(r.HTTPClient, "notify", ""); err != nil {
		return fmt.Errorf("http_config: %w", err)
	}
	s.secrets = r.secretsOf(s)
	return nil
}

// close ends the connections that wait to be used again.
func (s *service) close() {
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
}

// secretsOf returns what must not be shown of a service.
func (r *Receiver) secretsOf(s *service) []string {
	secrets := []string{s.token, s.topic}
	if s.kind == Discord {
		path := strings.Trim(s.url.Path, "/")
		secrets = append(secrets, s.url.String(), s.url.RawQuery, path, path[strings.LastIndexByte(path, '/')+1:])
	}
	return secrets
}

// maxSecretFile bounds what is read of the file of a secret, in bytes.
const maxSecretFile = 4096

// secret returns a value, or the one line of a file.
func secret(value config.Secret, path string) (string, error) {
	if path == "" {
		return string(value), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	text := bytes.TrimSpace(data)
	switch {
	case err != nil:
		return "", err
	case len(text) == 0:
		return "", fmt.Errorf("%s is empty", path)
	case len(data) > maxSecretFile || bytes.ContainsAny(text, "\r\n"):
		return "", fmt.Errorf("%s must hold one line and nothing else", path)
	}
	return string(text), nil
}

// redact takes the secrets out of a text.
func (s *service) redact(text string) string {
	secrets := append(httpclient.Secrets(&s.receiver.HTTPClient), s.secrets...)
	// The longest first: one may be part of another.
	slices.SortFunc(secrets, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, secret := range secrets {
		if len(secret) >= 4 { // a shorter one is part of anything
			text = strings.ReplaceAll(text, secret, "<secret>")
		}
	}
	return text
}

// inTheClear reports whether what gives access goes over a network unencrypted. The
// topic of ntfy does too, and the URL of Discord.
func (s *service) inTheClear() bool {
	return httpclient.InTheClear(s.url, &s.receiver.HTTPClient, s.token != "" || s.kind != Gotify)
}
