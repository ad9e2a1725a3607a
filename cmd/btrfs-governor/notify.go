package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/alecthomas/kingpin/v2"
)

// notifyTestCommand is `btrfs-governor notify test`.
type notifyTestCommand struct {
	name     string
	socket   string
	receiver string
}

func newNotifyTestCommand(app *kingpin.Application) *notifyTestCommand {
	notify := app.Command("notify", "Send notifications on to ntfy, Gotify and Discord.")
	cmd := notify.Command("test", "Send a notification to a receiver of the configuration, and say what the service answers.")
	c := &notifyTestCommand{name: cmd.FullCommand()}
	cmd.Arg("name", "The receiver.").Required().StringVar(&c.receiver)
	cmd.Flag("api.socket", "Unix socket of the daemon.").Default(defaultSocket).StringVar(&c.socket)
	return c
}

func (c *notifyTestCommand) run(ctx context.Context, stdout, _ io.Writer) error {
	var answer struct{}
	if err := newClient(c.socket).do(ctx, http.MethodPost, "/api/v1/notify/"+url.PathEscape(c.receiver)+"/test", nil, &answer); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "The service of %s has taken the notification.\n", printable(c.receiver))
	return nil
}
