package schedule

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// OnBattery reports whether the machine runs on its battery: one of the system
// discharges, and no mains or USB supply is online. sys is the mount point of
// sysfs. See Documentation/ABI/testing/sysfs-class-power of the kernel.
func OnBattery(sys string) (bool, error) {
	class := filepath.Join(sys, "class/power_supply")
	supplies, err := os.ReadDir(class)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // a kernel without power supplies
	}
	if err != nil {
		return false, fmt.Errorf("look for a battery: %w", err)
	}
	discharging := false
	for _, supply := range supplies {
		read := func(name string) string {
			text, err := os.ReadFile(filepath.Join(class, supply.Name(), name))
			if err != nil {
				return "" // a supply has only some of them, and may be gone
			}
			return strings.TrimSpace(string(text))
		}
		if read("scope") == "Device" {
			continue // of a mouse
		}
		switch kind := read("type"); {
		case kind == "Battery":
			if read("status") == "Discharging" {
				discharging = true
			}
		case kind == "Mains" || strings.HasPrefix(kind, "USB"): // USB_PD, USB_C
			// 1 is fixed, 2 is programmable: a charger with PPS.
			if online := read("online"); online == "1" || online == "2" {
				return false, nil
			}
		}
	}
	return discharging, nil
}
