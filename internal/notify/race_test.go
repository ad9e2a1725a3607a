//go:build race

package notify_test

// The race detector takes five to ten times as much memory
// (https://go.dev/doc/articles/race_detector#Runtime_Overheads).
const memoryFactor = 10
