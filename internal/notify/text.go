package notify

import (
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ellipsis ends a text that was cut.
const ellipsis = "…"

// cut returns a text that measures at most limit, ending in an ellipsis where
// something is missing. measure must grow with each rune.
func cut(text string, limit int, measure func(string) int) string {
	if measure(text) <= limit {
		return text
	}
	room := limit - measure(ellipsis)
	if room < 0 {
		return ""
	}
	end, used := 0, 0
	for end < len(text) {
		_, size := utf8.DecodeRuneInString(text[end:])
		if used += measure(text[end : end+size]); used > room {
			break
		}
		end += size
	}
	// A backslash alone would escape what follows.
	kept := text[:end]
	if trailing := len(kept) - len(strings.TrimRight(kept, `\`)); trailing%2 == 1 {
		kept = kept[:len(kept)-1]
	}
	return kept + ellipsis
}

func cutBytes(text string, limit int) string { return cut(text, limit, byteLength) }

func byteLength(text string) int { return len(text) }

// utf16Length is how many UTF-16 code units a text has: never fewer than
// characters, however a service counts them.
func utf16Length(text string) int {
	n := 0
	for _, r := range text {
		if n++; r >= 0x10000 {
			n++
		}
	}
	return n
}

// clean makes one line of data that anybody may have written: valid UTF-8 without
// control characters, and without those that turn the direction of what follows.
func clean(text string) string {
	text = strings.ToValidUTF8(text, string(utf8.RuneError))
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r), unicode.Is(unicode.Cc, r):
			return ' '
		case r >= '\u202a' && r <= '\u202e', r >= '\u2066' && r <= '\u2069', r == '\u200e', r == '\u200f', r == '\u061c', r == '\ufeff':
			return -1
		}
		return r
	}, text)
	return strings.Join(strings.Fields(text), " ")
}

// cleanLines is clean for what may have several lines.
func cleanLines(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = clean(line)
	}
	return strings.Trim(strings.Join(lines, "\n"), "\n")
}

// escapeMarkdown has a line of data shown as it is, by CommonMark as by Discord,
// where a backslash before punctuation shows that alone (spec.commonmark.org,
// "Backslash escapes").
func escapeMarkdown(text string) string {
	var b strings.Builder
	for i, r := range text {
		switch {
		case strings.ContainsRune("\\`*_[]<>#|~&@", r),
			i == 0 && strings.ContainsRune("-+=", r),
			(r == '.' || r == ')') && i > 0 && strings.Trim(text[:i], "0123456789") == "":
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// plainHost is a name or an IPv4 address. One of other letters looks like what it is
// not too easily.
var plainHost = regexp.MustCompile(`^[-_.A-Za-z0-9]+$`)

// safeURL returns a link that may be shown to a person, or nothing: of http or
// https, to a plain host, without a user name, which would hide where it leads, and
// with nothing in it that ends a link of Markdown.
func safeURL(text string) string {
	u, err := url.Parse(strings.TrimSpace(text))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || !utf8.ValidString(text) {
		return ""
	}
	if ip, err := netip.ParseAddr(u.Hostname()); (err != nil || ip.Zone() != "") && !plainHost.MatchString(u.Hostname()) {
		return ""
	}
	var b strings.Builder
	for _, c := range []byte(u.String()) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte("()<>[]{}\\^`|\"'*", c) >= 0 {
			const digits = "0123456789ABCDEF"
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
			continue
		}
		b.WriteByte(c)
	}
	// Brackets belong into the host of an IPv6 address, and nowhere else.
	safe := b.String()
	if strings.Contains(u.Host, "[") {
		safe = strings.Replace(safe, strings.NewReplacer("[", "%5B", "]", "%5D").Replace(u.Host), u.Host, 1)
	}
	if len(safe) > maxLink {
		return ""
	}
	return safe
}
