// Command sweep removes what killed test runs left behind: mounts, loop
// devices and files of package btrfstest.
package main

import (
	"fmt"
	"os"

	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

func main() {
	if err := btrfstest.Sweep(); err != nil {
		fmt.Fprintln(os.Stderr, "sweep:", err)
		os.Exit(1)
	}
}
