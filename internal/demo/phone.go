//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode"
)

// phone is a server that takes what an ntfy server would, and prints it.
type phone struct {
	address string
	token   string // who does not know it writes nothing on this terminal
	server  *http.Server
	served  chan struct{}
	out     io.Writer

	mu    sync.Mutex
	heard strings.Builder
	news  chan struct{} // gets a value with each notification
}

func newPhone(ctx context.Context, out io.Writer) (*phone, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &phone{address: l.Addr().String(), token: rand.Text(), out: out, served: make(chan struct{}), news: make(chan struct{}, 1)}
	p.server = &http.Server{Handler: p, ReadTimeout: 10 * time.Second}
	go func() {
		defer close(p.served)
		_ = p.server.Serve(l) // until close
	}()
	return p, nil
}

func (p *phone) close() {
	_ = p.server.Close()
	<-p.served
}

// ServeHTTP implements http.Handler.
func (p *phone) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// docs.ntfy.sh/publish/#access-tokens
	if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+p.token)) != 1 {
		http.Error(w, "the token is missing or another one", http.StatusUnauthorized)
		return
	}
	if r.Method == http.MethodGet {
		return // what it has, which is nothing
	}
	var sent struct{ Title, Message string }
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&sent); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.mu.Lock()
	fmt.Fprintf(p.out, "\n  +-- phone %s\n", strings.Repeat("-", 60))
	for line := range strings.Lines(sent.Title + "\n" + sent.Message) {
		for _, part := range wrap(strings.TrimRight(line, "\n"), 68) {
			fmt.Fprintf(p.out, "  | %s\n", printable(part))
		}
	}
	fmt.Fprintf(p.out, "  +%s\n\n", strings.Repeat("-", 70))
	p.heard.WriteString(sent.Title + "\n" + sent.Message + "\n")
	p.mu.Unlock()
	select {
	case p.news <- struct{}{}:
	default:
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprint(w, `{"id":"demo"}`)
}

// notificationPatience is how long a notification may take.
const notificationPatience = time.Minute

// waitFor waits until a notification holds a text.
func (p *phone) waitFor(ctx context.Context, text string) error {
	ctx, cancel := context.WithTimeout(ctx, notificationPatience)
	defer cancel()
	for {
		p.mu.Lock()
		heard := strings.Contains(p.heard.String(), text)
		p.mu.Unlock()
		if heard {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no notification of %s came: %w", text, ctx.Err())
		case <-p.news:
		}
	}
}

// printable replaces what a terminal might take for a command, and what turns the
// direction of the text around it: anybody on this machine may send an alert to
// Alertmanager.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

// wrap breaks a line between words.
func wrap(line string, width int) []string {
	var lines []string
	current := ""
	for _, word := range strings.Fields(line) {
		if current != "" && len(current)+1+len(word) > width {
			lines = append(lines, current)
			current = ""
		}
		if current != "" {
			current += " "
		}
		current += word
	}
	return append(lines, current)
}
