package httpapi

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// TokenName is the name of the token's file in the state directory.
const TokenName = "token"

// minToken is the least length of a token that somebody else made.
const minToken = 16

// Token is the bearer token that authorises changes over TCP. It is safe for
// concurrent use.
type Token struct {
	dir *state.Dir

	mu     sync.Mutex
	digest [sha256.Size]byte
	loaded bool
}

// NewToken returns the token of a state directory. It matches nothing before
// the first Load.
func NewToken(dir *state.Dir) *Token { return &Token{dir: dir} }

// Load reads the token from a file, or from the state directory where file is
// empty: there it is generated if it is missing. After an error the token stays
// as it was.
func (t *Token) Load(file string) error {
	token, err := t.read(file)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.digest, t.loaded = sha256.Sum256([]byte(token)), true
	return nil
}

func (t *Token) read(file string) (string, error) {
	if file != "" {
		return ReadToken(file)
	}
	path := t.dir.Path(TokenName)
	token, err := ReadToken(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return token, err
	}
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails
	token = hex.EncodeToString(random[:])
	return token, t.dir.WriteFile(TokenName, []byte(token+"\n"))
}

// ReadToken reads a token file: one line, which nobody but its owner and
// their group may read.
func ReadToken(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("read the token: everybody can read %s; make it private with chmod 600", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if len(token) < minToken || strings.ContainsAny(token, " \t\r\n") {
		return "", fmt.Errorf("read the token: %s must hold one word of at least %d characters", path, minToken)
	}
	return token, nil
}

// matches compares in a time that tells nothing of the token.
func (t *Token) matches(given string) bool {
	digest := sha256.Sum256([]byte(given))
	t.mu.Lock()
	defer t.mu.Unlock()
	return subtle.ConstantTimeCompare(digest[:], t.digest[:]) == 1 && t.loaded
}
