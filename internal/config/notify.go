package config

import (
	"fmt"
	"path/filepath"
	"strings"

	promconfig "github.com/prometheus/common/config"

	"github.com/btrfs-governor/btrfs-governor/internal/notify"
)

// Notify says to whom notifications are sent on.
type Notify struct {
	Receivers []NotifyReceiver `yaml:"receivers"`
}

// NotifyReceiver is one of them, see notify.Receiver.
type NotifyReceiver struct {
	Name       string     `yaml:"name"`
	Type       string     `yaml:"type"` // ntfy, gotify or discord
	URL        string     `yaml:"url"`
	URLFile    string     `yaml:"url_file"`
	Topic      string     `yaml:"topic"`
	Token      string     `yaml:"token"`
	TokenFile  string     `yaml:"token_file"`
	Title      string     `yaml:"title"`
	Message    string     `yaml:"message"`
	Click      string     `yaml:"click"`
	RateLimit  int        `yaml:"rate_limit"`
	HTTPConfig HTTPClient `yaml:"http_config"`
}

func (n *Notify) validate() *keyError {
	names := make(map[string]bool)
	for i := range n.Receivers {
		c := &n.Receivers[i]
		key := fmt.Sprintf("notify.receivers[%d]", i)
		if c.Name == "" {
			return &keyError{key, "has no name; it stands in the address that Alertmanager sends to"}
		}
		if names[c.Name] {
			return &keyError{key + ".name", fmt.Sprintf("is %q a second time", c.Name)}
		}
		names[c.Name] = true
		for name, path := range map[string]string{"url_file": c.URLFile, "token_file": c.TokenFile} {
			if path != "" && !filepath.IsAbs(path) {
				return &keyError{key + "." + name, "must be an absolute path, such as /etc/btrfs-governor/" + strings.TrimSuffix(name, "_file")}
			}
		}
		r := c.receiver()
		if err := r.Validate(); err != nil {
			return &keyError{key, "is wrong: " + strings.TrimPrefix(err.Error(), fmt.Sprintf("receiver %q: ", c.Name))}
		}
	}
	return nil
}

func (c *NotifyReceiver) receiver() notify.Receiver {
	return notify.Receiver{
		Name: c.Name, Kind: notify.Kind(c.Type), URL: promconfig.Secret(c.URL), URLFile: c.URLFile, Topic: promconfig.Secret(c.Topic),
		Token: promconfig.Secret(c.Token), TokenFile: c.TokenFile, HTTPClient: c.HTTPConfig.Config(),
		Title: c.Title, Message: c.Message, Click: c.Click, RateLimit: c.RateLimit,
	}
}

// Receivers returns to whom notifications are sent on.
func (c *Config) Receivers() []notify.Receiver {
	var all []notify.Receiver
	for i := range c.Notify.Receivers {
		all = append(all, c.Notify.Receivers[i].receiver())
	}
	return all
}
