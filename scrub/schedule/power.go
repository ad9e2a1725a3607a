package schedule

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// OnBattery reports whether the machine runs on its battery: one of the system
// discharges, and no mains supply is online. sys is the mount point of sysfs.
// See Documentation/ABI/testing/sysfs-class-power of the kernel.
func OnBattery(sys string) (bool, error) {
	dirs, err := filepath.Glob(filepath.Join(sys, "class/power_supply/*"))
	if err != nil {
		return false, fmt.Errorf("look for a battery: %w", err)
	}
	discharging := false
	for _, dir := range dirs {
		read := func(name string) string {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				return "" // a supply has only some of them
			}
			return strings.TrimSpace(string(text))
		}
		switch kind := read("type"); {
		case kind == "Battery":
			// That of a mouse has the scope Device.
			if read("scope") != "Device" && read("status") == "Discharging" {
				discharging = true
			}
		case read("online") == "1" && read("scope") != "Device":
			return false, nil
		}
	}
	return discharging, nil
}
