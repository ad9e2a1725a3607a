package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/alecthomas/kingpin/v2"

	"github.com/btrfs-governor/btrfs-governor/internal/httpapi"
)

// tokenCommand is `btrfs-governor token`.
type tokenCommand struct {
	name      string
	stateDir  string
	tokenFile string
}

func newTokenCommand(app *kingpin.Application) *tokenCommand {
	cmd := app.Command("token", "Print the bearer token that allows changes over TCP.")
	c := &tokenCommand{name: cmd.FullCommand()}
	cmd.Flag("state.dir", "State directory of the daemon.").Default("/var/lib/btrfs-governor").StringVar(&c.stateDir)
	cmd.Flag("token-file", "File of the token, where the configuration names another one (token_file).").StringVar(&c.tokenFile)
	return c
}

func (c *tokenCommand) run(_ context.Context, stdout, _ io.Writer) error {
	path := c.tokenFile
	if path == "" {
		path = filepath.Join(c.stateDir, httpapi.TokenName)
	}
	token, err := httpapi.ReadToken(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && c.tokenFile == "":
		return fmt.Errorf("there is no token in %s: the daemon makes it at its first start; its --state.dir is given here too", c.stateDir)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: run this as root", err)
	case err != nil:
		return err
	}
	fmt.Fprintln(stdout, token)
	return nil
}
