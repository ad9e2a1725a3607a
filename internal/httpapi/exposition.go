package httpapi

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"hash/crc32"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// textAppender is a collector that writes its metrics itself, in the text
// format 0.0.4, and far cheaper than a registry does. Those that rarely change
// come first.
type textAppender interface {
	AppendText(stable, volatile []byte) ([]byte, []byte)
}

// expositionHandler answers a scrape with the text of the pools and the
// metrics of the process.
type expositionHandler struct {
	pools   textAppender
	process prometheus.Gatherer
	log     gatherLog
	packer  *packer
	// keep has the packer remember the stable part until the next scrape.
	keep bool
}

// scratch are the buffers of a scrape.
type scratch struct {
	stable, volatile []byte
	process          bytes.Buffer
	packed           []byte
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func (h *expositionHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	s.stable, s.volatile = h.pools.AppendText(s.stable[:0], s.volatile[:0])
	s.process.Reset()
	families, err := h.process.Gather()
	if err != nil {
		h.log.Println(err)
	}
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&s.process, f); err != nil {
			h.log.Println(err)
		}
	}
	s.volatile = append(s.volatile, s.process.Bytes()...)

	header := w.Header()
	header.Set("Content-Type", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
	header.Add("Vary", "Accept-Encoding")
	if acceptsGzip(r.Header) {
		s.packed = h.packer.gzip(s.packed[:0], s.stable, s.volatile, h.keep)
		header.Set("Content-Encoding", "gzip")
		header.Set("Content-Length", strconv.Itoa(len(s.packed)))
		_, _ = w.Write(s.packed) // who hung up gets nothing
		return
	}
	header.Set("Content-Length", strconv.Itoa(len(s.stable)+len(s.volatile)))
	if _, err := w.Write(s.stable); err == nil {
		_, _ = w.Write(s.volatile)
	}
}

// acceptsGzip reads Accept-Encoding (RFC 9110, 12.5.3).
func acceptsGzip(h http.Header) bool {
	for _, field := range h.Values("Accept-Encoding") {
		for coding := range strings.SplitSeq(field, ",") {
			name, parameters, err := mime.ParseMediaType("x/" + strings.TrimSpace(coding))
			if err != nil || name != "x/gzip" {
				continue
			}
			q, given := parameters["q"]
			weight, err := strconv.ParseFloat(q, 64)
			return !given || err == nil && weight > 0
		}
	}
	return false
}

// packer makes gzip streams. It keeps the compressed form of the last stable
// part and uses it again when the next one is the same, byte for byte: on a
// quiet machine most of a scrape's cost would else be compressing the same
// text.
type packer struct {
	mu     sync.Mutex
	writer *flate.Writer
	out    bytes.Buffer

	text   []byte // the last stable part
	packed []byte // as deflate blocks that end on a byte and refer to nothing before
	sum    uint32 // CRC-32 of text
}

func newPacker() *packer {
	p := &packer{}
	// The text is repetitive enough for the fastest level.
	p.writer, _ = flate.NewWriter(&p.out, flate.BestSpeed) // fails on a bad level only
	return p
}

// gzipHeader says deflate, no name, no time, unknown operating system
// (RFC 1952).
const gzipHeader = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"

// gzip appends the two parts as one gzip stream.
func (p *packer) gzip(dst, stable, volatile []byte, keep bool) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	packed, sum := p.packed, p.sum
	if p.packed == nil || !bytes.Equal(p.text, stable) {
		packed, sum = p.deflate(stable, false), crc32.ChecksumIEEE(stable)
		if keep {
			p.text = append(p.text[:0], stable...)
			p.packed = append(p.packed[:0], packed...)
			packed, p.sum = p.packed, sum
		}
	}
	dst = append(dst, gzipHeader...)
	dst = append(dst, packed...)
	dst = append(dst, p.deflate(volatile, true)...)
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Update(sum, crc32.IEEETable, volatile))
	return binary.LittleEndian.AppendUint32(dst, uint32(len(stable)+len(volatile)))
}

// deflate compresses text by itself; what it returns is valid until the next
// call. A part that is not the last ends on a byte, so that another can follow
// (RFC 1951: an empty stored block).
func (p *packer) deflate(text []byte, last bool) []byte {
	p.out.Reset()
	p.writer.Reset(&p.out)
	// Writes to a buffer do not fail.
	_, _ = p.writer.Write(text)
	if last {
		_ = p.writer.Close()
	} else {
		_ = p.writer.Flush()
	}
	return p.out.Bytes()
}
