package httpapi

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"time"

	"github.com/btrfs-governor/btrfs-governor/internal/web"
)

// sessionLength is for how long the status page remembers that the token was given.
const sessionLength = 12 * time.Hour

// A session is a time at which it ends and a random number, with a MAC whose key
// follows from the token. So nothing has to be kept, a restart ends none, and
// another token ends all. It says nothing of the token.
const (
	sessionText = 8 + 16
	sessionSize = sessionText + sha256.Size
)

// newSession returns a session that ends at a time.
func (t *Token) newSession(end time.Time) string {
	text := make([]byte, sessionText, sessionSize)
	binary.BigEndian.PutUint64(text, uint64(end.Unix()))
	_, _ = rand.Read(text[8:]) // never fails
	return base64.RawURLEncoding.EncodeToString(append(text, t.sign(text)...))
}

// hasSession tells whether a session was made with this token and has not ended.
func (t *Token) hasSession(session string, now time.Time) bool {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(session)
	if err != nil || len(raw) != sessionSize || !hmac.Equal(raw[sessionText:], t.sign(raw[:sessionText])) {
		return false
	}
	left := int64(binary.BigEndian.Uint64(raw)) - now.Unix()
	// One that ends later than any is from before the clock was set back.
	return t.isLoaded() && left > 0 && left <= int64(sessionLength/time.Second)
}

func (t *Token) sign(text []byte) []byte {
	t.mu.Lock()
	key := t.digest
	t.mu.Unlock()
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte("btrfs-governor session\x00"))
	mac.Write(text)
	return mac.Sum(nil)
}

func (t *Token) isLoaded() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.loaded
}

// sessionCookie is the name of the cookie. With TLS it has the prefix that keeps
// other hosts of the domain from setting it.
func sessionCookie(r *http.Request) string {
	if r.TLS != nil {
		return "__Host-btrfs-governor"
	}
	return "btrfs-governor"
}

// setSession gives the browser a session, or takes it away with "".
func setSession(w http.ResponseWriter, r *http.Request, session string) {
	c := &http.Cookie{
		Name: sessionCookie(r), Value: session, Path: "/", MaxAge: int(sessionLength / time.Second),
		Secure: r.TLS != nil, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	}
	if session == "" {
		c.MaxAge = -1
	}
	http.SetCookie(w, c)
}

// control tells what whoever asks for the status page may do.
func (a *api) control(r *http.Request) web.Control {
	switch {
	case a.cfg.Token == nil || a.cfg.Scrubs == nil:
		return web.ReadOnly
	case overAPISocket(r):
		return web.Unlocked
	case r.TLS == nil && !fromThisMachine(r):
		return web.Insecure
	case a.authorise(r) == nil:
		return web.Unlocked
	}
	if c, err := r.Cookie(sessionCookie(r)); err == nil && a.cfg.Token.hasSession(c.Value, time.Now()) {
		return web.Unlocked
	}
	return web.Locked
}
