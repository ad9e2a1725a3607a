//go:build linux

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// client scrapes one exporter over one connection, as Prometheus does.
type client struct {
	http *http.Client
	url  string
}

func newClient(url string) *client {
	return &client{url: url, http: &http.Client{
		Timeout: 30 * time.Second,
		// Prometheus asks for gzip itself, and so do we.
		Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 1, DialContext: new(net.Dialer).DialContext},
	}}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// answer is what a scrape gave.
type answer struct {
	text  string
	bytes int           // on the wire
	took  time.Duration // to the last byte
}

func (c *client) scrape(ctx context.Context) (answer, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, http.NoBody)
	if err != nil {
		return answer{}, err
	}
	// The headers of Prometheus 2.42, which Debian 12 has.
	request.Header.Set("Accept", "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
	request.Header.Set("Accept-Encoding", "gzip")
	request.Header.Set("User-Agent", "Prometheus/2.42.0")
	request.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", "10")

	start := time.Now()
	response, err := c.http.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	a := answer{took: time.Since(start), bytes: len(body)}
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", c.url, err)
	}
	if response.Header.Get("Content-Encoding") == "gzip" {
		if body, err = gunzip(body); err != nil {
			return answer{}, fmt.Errorf("%s: %w", c.url, err)
		}
	}
	if response.StatusCode != http.StatusOK {
		return answer{}, fmt.Errorf("%s: %s: %s", c.url, response.Status, body)
	}
	a.text = string(body)
	return a, nil
}

func gunzip(b []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// countSeries counts all series of an exposition and those that begin with a
// prefix.
func countSeries(exposition, prefix string) (all, matching int) {
	for line := range strings.Lines(exposition) {
		if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" {
			continue
		}
		all++
		if strings.HasPrefix(line, prefix) {
			matching++
		}
	}
	return all, matching
}

// quantile returns the q-quantile of values, which it sorts.
func quantile(values []time.Duration, q float64) time.Duration {
	slices.Sort(values)
	i := int(q * float64(len(values)-1))
	return values[i]
}
