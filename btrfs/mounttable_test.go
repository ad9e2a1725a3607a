package btrfs

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestMountTableThatHangsHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := UUID{1}, UUID{2}
		points := []MountPoint{{Path: "/srv"}}
		var readings atomic.Int64
		hang := make(chan struct{})
		fault := errors.New("a malformed line")
		table := NewMountTable(func() ([]Mount, error) {
			switch readings.Add(1) {
			case 1:
				return []Mount{{UUID: one, Points: points}}, fault
			case 2:
				return nil, fault // what was found before is not forgotten for it
			case 3:
				<-hang
			}
			return []Mount{{UUID: two}, {UUID: two, Points: points}}, nil
		})
		const patience = 5 * time.Second
		if mounts, err := table.List(patience); !errors.Is(err, fault) || len(mounts) != 1 {
			t.Fatalf("at first there are %v: %v", mounts, err)
		}
		if mounts, err := table.List(patience); !errors.Is(err, fault) || len(mounts) != 0 {
			t.Fatalf("then there are %v: %v", mounts, err)
		}
		for _, wait := range []time.Duration{patience, 0, 0} { // nobody waits again
			began := time.Now()
			mounts, err := table.List(patience)
			if took := time.Since(began); took != wait {
				t.Errorf("it took %s, want %s", took, wait)
			}
			if !errors.Is(err, ErrNoAnswer) || len(mounts) != 1 || mounts[0].UUID != one {
				t.Errorf("while it hangs there are %v: %v", mounts, err)
			}
		}
		if m, err := table.Find(one, patience); err != nil || m == nil {
			t.Errorf("while it hangs a pool that was there is %v: %v", m, err)
		}
		if m, err := table.Find(two, patience); !errors.Is(err, ErrNoAnswer) || m != nil {
			t.Errorf("while it hangs a pool that was not there is %v: %v", m, err)
		}
		if n := readings.Load(); n != 3 {
			t.Errorf("there were %d readings, want 3: one goroutine hangs, not many", n)
		}
		close(hang)
		synctest.Wait()
		if m, err := table.Find(two, patience); err != nil || m == nil || len(m.Points) == 0 {
			t.Errorf("afterwards the other pool is %v: %v", m, err)
		}
		if m, err := table.Find(one, patience); err != nil || m != nil {
			t.Errorf("afterwards the pool that is gone is %v: %v", m, err)
		}
	})
}
