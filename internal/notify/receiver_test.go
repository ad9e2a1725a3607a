package notify_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/config"

	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/internal/notify"
)

func TestWhatCannotBeIsFoundAtLoad(t *testing.T) {
	const base = "https://push.example.org"
	for _, test := range []struct {
		name   string
		kind   notify.Kind
		change func(*notify.Receiver)
		want   string
	}{
		{"no name", notify.Ntfy, func(r *notify.Receiver) { r.Name = "" }, "its name must be"},
		{"a path for a name", notify.Ntfy, func(r *notify.Receiver) { r.Name = "../phone" }, "its name must be"},
		{"unknown type", "pager", func(*notify.Receiver) {}, `its type is "pager"`},
		{"no URL", notify.Ntfy, func(r *notify.Receiver) { r.URL = "" }, "one of url and url_file"},
		{"two URLs", notify.Ntfy, func(r *notify.Receiver) { r.URLFile = "/url" }, "one of url and url_file"},
		{"no URL at all", notify.Ntfy, func(r *notify.Receiver) { r.URL = "http://secret-9%zz" }, "it is no URL"},
		{"another scheme", notify.Gotify, func(r *notify.Receiver) { r.URL = "file:///secret-9" }, "it must begin with https://"},
		{"no host", notify.Gotify, func(r *notify.Receiver) { r.URL = "https:///secret-9" }, "it must begin with https://"},
		{"a password in the URL", notify.Ntfy, func(r *notify.Receiver) { r.URL = "https://a:secret-9@b" }, "basic_auth in http_config"},
		{"a token in the URL", notify.Gotify, func(r *notify.Receiver) { r.URL = base + "/message?token=secret-9" }, "address of the server alone"},
		{"half a webhook", notify.Discord, func(r *notify.Receiver) { r.URL = base }, "the whole URL of the webhook"},
		{"no topic", notify.Ntfy, func(r *notify.Receiver) { r.Topic = "" }, "topic: ntfy needs one"},
		{"a path for a topic", notify.Ntfy, func(r *notify.Receiver) { r.Topic = "secret-9/json" }, "topic: ntfy needs one"},
		{"a topic of Gotify", notify.Gotify, func(r *notify.Receiver) { r.Topic = "secret-9" }, "only ntfy has topics"},
		{"no token", notify.Gotify, func(r *notify.Receiver) { r.Token = "" }, "the token of a Gotify application"},
		{"two tokens", notify.Gotify, func(r *notify.Receiver) { r.TokenFile = "/token" }, "one of token and token_file"},
		{"two lines", notify.Gotify, func(r *notify.Receiver) { r.Token = "secret-9\nX-Other: 1" }, "printable characters"},
		{"a token of Discord", notify.Discord, func(r *notify.Receiver) { r.Token = "secret-9" }, "all that it needs"},
		{"two authorizations", notify.Ntfy, func(r *notify.Receiver) {
			r.HTTPClient.BasicAuth = &config.BasicAuth{Username: "a", Password: "secret-9"}
		}, "not both"},
		{"http_config", notify.Discord, func(r *notify.Receiver) {
			r.HTTPClient.BearerToken, r.HTTPClient.BearerTokenFile = "secret-9", "/token"
		}, "http_config: at most one of"},
		{"rate limit", notify.Ntfy, func(r *notify.Receiver) { r.RateLimit = -1 }, "rate_limit is -1"},
		{"a template that cannot be read", notify.Ntfy, func(r *notify.Receiver) { r.Title = "{{ .Status" }, "title: template: title:1: unclosed action"},
		{"a field that there is not", notify.Ntfy, func(r *notify.Receiver) { r.Message = "{{ .Stauts }}" }, "message: tried on a message whose alerts are firing: "},
		{"a template for what fires alone", notify.Ntfy, func(r *notify.Receiver) { r.Click = "{{ (index .Firing 0).GeneratorURL }}" }, "click: tried on a message whose alerts are resolved: "},
		{"a template without end", notify.Ntfy, func(r *notify.Receiver) {
			r.Message = `{{ define "a" }}{{ range .Alerts }}more and more{{ end }}{{ template "a" . }}{{ end }}{{ template "a" . }}`
		}, "message: tried on"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := receiver(test.kind, "phone", base)
			test.change(&r)
			b := open(t, t.TempDir(), nil)
			for _, err := range []error{r.Validate(), b.SetSettings([]notify.Receiver{r})} {
				if err == nil || !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), fmt.Sprintf("receiver %q: ", r.Name)) {
					t.Errorf("the error is %v, and does not say %q", err, test.want)
				}
				if err != nil && strings.Contains(err.Error(), "secret-9") {
					t.Errorf("the error shows a secret: %v", err)
				}
			}
			must(t, b.Close())
		})
	}
}

func TestSecretsAreReadFromFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "token")
	s := serve(t, notify.Gotify)
	r := s.receiver("phone")
	r.Token, r.TokenFile = "", path
	b := open(t, t.TempDir(), nil)
	for content, want := range map[string]string{
		"":                        path + " is empty",
		" \n":                     path + " is empty",
		"one\ntwo\n":              "must hold one line",
		"one two\n":               "must hold one token",
		strings.Repeat("x", 9000): "must hold one line",
	} {
		must(t, os.WriteFile(path, []byte(content), 0o600))
		if err := b.SetSettings([]notify.Receiver{r}); err == nil || !strings.Contains(err.Error(), `receiver "phone": token_file: `) || !strings.Contains(err.Error(), want) {
			t.Errorf("with %.20q the error is %v", content, err)
		}
	}
	must(t, os.WriteFile(path, []byte(token+"\n"), 0o600))
	must(t, b.SetSettings([]notify.Receiver{r}))
	must(t, b.Test(t.Context(), "phone"))
	r.TokenFile = dir
	if err := b.SetSettings([]notify.Receiver{r}); err == nil || !strings.Contains(err.Error(), "token_file") {
		t.Errorf("of a directory the error is %v", err)
	}
	must(t, b.Close())
}

// A file that is not there yet stops nobody: what is accepted waits for it.
func TestReceiverWhoseFilesAreMissingWaitsForThem(t *testing.T) {
	noMoreGoroutines(t)
	dir, stateDir, c := t.TempDir(), t.TempDir(), newClock()
	s, healthy := serve(t, notify.Gotify), serve(t, notify.Gotify)
	address, secret, password := filepath.Join(dir, "url"), filepath.Join(dir, "token"), filepath.Join(dir, "password")
	r := s.receiver("phone")
	r.URL, r.URLFile, r.Token, r.TokenFile = "", address, "", secret
	r.HTTPClient.BasicAuth = &config.BasicAuth{Username: "nas", PasswordFile: password}
	if err := r.Check(); err == nil || !strings.Contains(err.Error(), "url_file: ") {
		t.Errorf("a check says %v", err)
	}
	b := unset(t, stateDir, c)
	use, err := b.PrepareStart([]notify.Receiver{r, healthy.receiver("other")})
	must(t, err)
	use()
	b.start()
	defer b.stop()
	b.accept("phone", number(1))
	b.accept("other", number(1))
	eventually(t, "the other gets it", func() bool { return healthy.idle(1) })
	told := func() int { return strings.Count(b.log.String(), "level=error") }
	for _, step := range []struct{ file, content, key string }{
		{address, s.URL, "url_file"}, {secret, token, "token_file"}, {password, "a-password", "http_config: basic_auth.password_file: no such file"},
	} {
		eventually(t, "it waits", func() bool { return c.wait(t) == 5*time.Minute })
		if err := b.Test(t.Context(), "phone"); err == nil || !strings.Contains(err.Error(), step.key) {
			t.Errorf("a test says %v, want something of %s", err, step.key)
		}
		if err := b.SetSettings([]notify.Receiver{r}); err == nil || !strings.Contains(err.Error(), step.key) {
			t.Errorf("later settings: %v", err)
		}
		must(t, os.WriteFile(step.file, []byte(step.content+"\n"), 0o600))
		c.advance(5 * time.Minute)
	}
	eventually(t, "it is sent", func() bool { return s.idle(1) })
	if got := metric(t, b, `btrfs_governor_notification_failures_total{receiver="phone"}`); got != 3 {
		t.Errorf("%v failures are counted, want 3", got)
	}
	if told() != 1 || !strings.Contains(b.log.String(), "url_file: ") {
		t.Errorf("the log is\n%s", b.log)
	}
}

func TestTwoReceiversOfOneNameAreAnError(t *testing.T) {
	b := open(t, t.TempDir(), nil)
	r := receiver(notify.Gotify, "phone", "https://push.example.org")
	if err := b.SetSettings([]notify.Receiver{r, r}); err == nil || !strings.Contains(err.Error(), "two of that name") {
		t.Errorf("got %v", err)
	}
	must(t, b.Close())
}

func TestBadSettingsLeaveTheOldOnes(t *testing.T) {
	s := serve(t, notify.Gotify)
	b := open(t, t.TempDir(), nil, s.receiver("phone")).start()
	defer b.stop()
	bad := s.receiver("other")
	bad.Title = "{{"
	if err := b.SetSettings([]notify.Receiver{bad}); err == nil {
		t.Error("bad settings are no error")
	}
	b.accept("phone", number(1))
	eventually(t, "it is sent", func() bool { return s.idle(1) })
}

func TestSecretInTheClearIsTold(t *testing.T) {
	const far = "http://push.example.org"
	withoutToken := receiver(notify.Ntfy, "topic", far)
	withoutToken.Token = ""
	b := open(t, t.TempDir(), nil, receiver(notify.Gotify, "phone", far), withoutToken, receiver(notify.Discord, "chat", far),
		receiver(notify.Gotify, "other", "http://127.0.0.1:1"), receiver(notify.Ntfy, "safe", "https://push.example.org"))
	for _, name := range []string{"phone", "topic", "chat"} {
		if !strings.Contains(b.log.String(), "receiver="+name) {
			t.Errorf("%s is not told", name)
		}
	}
	if n := strings.Count(b.log.String(), "unencrypted"); n != 3 {
		t.Errorf("the log is\n%s", b.log)
	}
	must(t, b.Close())
}

// What a service repeats of the request is in no log and no answer.
func TestSecretsOfTheClientAreNotShown(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(file, []byte("of-a-file\n"), 0o600))
	s := serve(t, notify.Gotify)
	s.fail = func(w http.ResponseWriter, r *http.Request) bool {
		http.Error(w, fmt.Sprint(r.Header, " and of-a-file"), http.StatusForbidden)
		return true
	}
	r := s.receiver("phone")
	r.HTTPClient.BasicAuth = &config.BasicAuth{Username: "nas", PasswordFile: file}
	r.HTTPClient.HTTPHeaders = &config.Headers{Headers: map[string]config.Header{"A": {Secrets: []config.Secret{"of-a-header"}, Values: []string{"in-the-open"}, Files: []string{file}}}}
	b := open(t, t.TempDir(), newClock(), r)
	err := b.Test(t.Context(), "phone")
	must(t, b.Close())
	if err == nil || !strings.Contains(err.Error(), "<secret>") {
		t.Fatalf("got %v", err)
	}
	for _, secret := range []string{"of-a-file", "of-a-header", "in-the-open", token, base64.StdEncoding.EncodeToString([]byte("nas:of-a-file"))} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the answer shows %q: %v", secret, err)
		}
	}
}

func TestMessageWithoutAlertsIsRefused(t *testing.T) {
	b := open(t, t.TempDir(), nil, receiver(notify.Gotify, "phone", "https://push.example.org"))
	if _, err := b.Accept("phone", &alertmanager.Message{}); err == nil {
		t.Error("it is accepted")
	}
	must(t, b.Close())
}
