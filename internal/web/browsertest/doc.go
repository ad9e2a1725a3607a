// Package browsertest looks at the status page with a real browser. It is for tests
// only.
package browsertest
