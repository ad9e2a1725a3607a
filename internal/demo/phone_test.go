//go:build linux

package main

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
)

// send sends a request to a phone and returns the status of the answer.
func send(t *testing.T, p *phone, method, token, body string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+p.address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	return response.StatusCode
}

func TestPhoneShowsOnlyWhatBearsItsToken(t *testing.T) {
	var out bytes.Buffer
	p, err := newPhone(t.Context(), &out)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	const body = `{"topic": "attic", "title": "A title", "message": "a message"}`
	for _, tt := range []struct {
		method, token, body string
		want                int
	}{
		{http.MethodPost, "", body, http.StatusUnauthorized},
		{http.MethodPost, "attic", body, http.StatusUnauthorized},
		{http.MethodGet, "", "", http.StatusUnauthorized},
		{http.MethodGet, p.token, "", http.StatusOK},
		{http.MethodPost, p.token, "{", http.StatusBadRequest},
	} {
		if got := send(t, p, tt.method, tt.token, tt.body); got != tt.want {
			t.Errorf("%s %q with the token %q: %d, want %d", tt.method, tt.body, tt.token, got, tt.want)
		}
	}
	if out.Len() > 0 {
		t.Errorf("it shows\n%s", &out)
	}
	if got := send(t, p, http.MethodPost, p.token, body); got != http.StatusOK {
		t.Errorf("%d", got)
	}
	checkContains(t, out.String(), `^  \| A title$`, `^  \| a message$`)
}

func TestPhoneGivesTheTerminalNoCommands(t *testing.T) {
	var out bytes.Buffer
	p, err := newPhone(t.Context(), &out)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	body := `{"title": "\u001b]0;owned\u0007 \u009b2J é ⚠️", "message": "one\rtwo\u0008\nthree \u202egnp.exe\u2028 \u200b\u007f` + "\xff" + `"}`
	if got := send(t, p, http.MethodPost, p.token, body); got != http.StatusOK {
		t.Fatalf("%d", got)
	}
	_, text, _ := strings.Cut(strings.TrimSpace(out.String()), "\n")
	text, _, _ = strings.Cut(text, "\n  +-")
	const want = "  | \ufffd]0;owned\ufffd \ufffd2J é ⚠️\n  | one two\ufffd\n  | three \ufffdgnp.exe \ufffd\ufffd\ufffd"
	if text != want {
		t.Errorf("it shows\n%q\nwant\n%q", text, want)
	}
}
