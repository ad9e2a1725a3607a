package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// List returns all snapshots of a pool that there are, also those that others
// made, the oldest first. With sizes it finds out what deleting each would give
// back, which takes as long as there is file data to look up, or until ctx is done.
func (r *Runner) List(ctx context.Context, uuid btrfs.UUID, sizes bool) (*List, error) {
	if _, err := r.findMount(uuid); err != nil {
		return nil, err
	}
	p, err := r.pool(uuid)
	if err != nil {
		return nil, err
	}
	if !sizes {
		return ask(ctx, p, p.asked, func() (*List, error) { return p.list(ctx, false) })
	}
	if !p.sizing.TryLock() {
		return nil, fmt.Errorf("pool %s: the sizes are being found for another request: %w", uuid, ErrBusy)
	}
	defer p.sizing.Unlock()
	return p.list(ctx, true)
}

func (p *pool) list(ctx context.Context, sizes bool) (*List, error) {
	r, uuid := p.runner, p.uuid
	// The records first: one that is made meanwhile is then missing among ours,
	// and none is missing in the filesystem for being too new.
	records := p.seen().records
	f, m, err := r.openToRead(uuid)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", uuid, err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	live, _, err := subvolumes(f)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", uuid, err)
	}
	list := &List{Pool: uuid, Snapshots: []Snapshot{}}
	cleaning, err := f.CleaningSubvolumes()
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", uuid, err)
	}
	list.Cleaning = len(cleaning)
	settings, location, _ := r.settingsOf(uuid)
	ours := make(map[uint64]int, len(records))
	for i := range records {
		ours[records[i].ID] = i
	}
	decisions := decide(settings.Retention, records, location)
	paths := pathsOf{f: f, directories: make(map[[2]uint64]string)}
	all := &facts{live: live, mount: m, parents: parentsOf(records), paths: paths.directories}
	sources := make(map[btrfs.UUID]uint64, len(live))
	for id := range live {
		s := live[id]
		sources[s.UUID] = id
	}
	for id := range live {
		s := live[id]
		i, is := ours[id]
		if is && records[i].UUID != s.UUID {
			is = false // another one got its id
		}
		if s.ParentUUID.IsZero() && !is {
			continue
		}
		path, err := paths.of(&s)
		if errors.Is(err, unix.ENOENT) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("pool %s: %w", uuid, err)
		}
		out := Snapshot{Name: s.Name, Path: path, ID: id, UUID: s.UUID, Created: s.Created, ReadOnly: s.ReadOnly}
		if is {
			record, d := &records[i], &decisions[i]
			out.Ours, out.Pinned, out.Created, out.Subvolume = true, record.Pinned, record.Taken, &record.Subvolume
			if out.Protected = record.refusal(&s, all); out.Protected == "" {
				if d.Keep {
					out.Keep = d.Reasons
				} else {
					out.Prune = d.String()
				}
			}
		} else if source, there := sources[s.ParentUUID]; there {
			s := live[source]
			if path, err := paths.of(&s); err == nil {
				out.Subvolume = &path
			}
		}
		list.Snapshots = append(list.Snapshots, out)
	}
	slices.SortFunc(list.Snapshots, func(a, b Snapshot) int {
		if a.ID < b.ID { // which rise with time, whatever the clock said
			return -1
		}
		return 1
	})
	if sizes {
		if list.Sizes, err = addSizes(ctx, f, live, list.Snapshots); err != nil {
			return nil, fmt.Errorf("pool %s: %w", uuid, err)
		}
	}
	return list, nil
}

// pathsOf finds the paths of subvolumes, and asks for each directory once.
type pathsOf struct {
	f           *btrfs.Filesystem
	directories map[[2]uint64]string
}

func (p *pathsOf) of(s *btrfs.Subvolume) (string, error) {
	if s.Parent == 0 {
		return "", nil
	}
	key := [2]uint64{s.Parent, s.Directory}
	dir, known := p.directories[key]
	if !known {
		var err error
		if dir, err = p.f.DirectoryPath(s.Parent, s.Directory); err != nil {
			return "", err
		}
		p.directories[key] = dir
	}
	return strings.TrimPrefix(dir+"/"+s.Name, "/"), nil
}

// PlanCreate says what taking snapshots would do now.
func (r *Runner) PlanCreate(ctx context.Context, uuid btrfs.UUID, o CreateOptions) (*Plan, error) {
	p, err := r.mounted(uuid)
	if err != nil {
		return nil, err
	}
	sources, err := r.sources(uuid, o)
	if err != nil {
		return nil, err
	}
	return ask(ctx, p, p.asked, func() (*Plan, error) {
		f, _, err := r.open(uuid, nil)
		if err != nil {
			return nil, fmt.Errorf("pool %s: %w: %w", uuid, err, ErrRefused)
		}
		defer f.Close() //nolint:errcheck // nothing was changed
		s, _, _ := r.settingsOf(uuid)
		plan := &Plan{Pool: uuid, Would: []string{}}
		var except btrfs.Place
		if dir, err := f.OpenDirectory(s.Directory); err == nil {
			except, err = dir.Place()
			dir.Close()
			if err != nil {
				return nil, fmt.Errorf("pool %s: %w", uuid, err)
			}
		} else if errors.Is(err, unix.ENOENT) {
			plan.Would = append(plan.Would, fmt.Sprintf("make the directory /%s", s.Directory))
		} else {
			return nil, fmt.Errorf("pool %s: %w: %w", uuid, directoryError(s.Directory, err), ErrRefused)
		}
		if len(s.Hooks.Before) > 0 {
			plan.Would = append(plan.Would, "run "+strings.Join(s.Hooks.Before, " "))
		}
		now := r.clock.Now()
		for _, subvolume := range sources {
			what, err := planOne(f, subvolume, s.Directory, except, now)
			if err != nil {
				return nil, fmt.Errorf("pool %s: %w: %w", uuid, err, ErrRefused)
			}
			plan.Would = append(plan.Would, what...)
		}
		if len(s.Hooks.After) > 0 {
			plan.Would = append(plan.Would, "run "+strings.Join(s.Hooks.After, " "))
		}
		if r.prunable(uuid) == nil {
			plan.Would = append(plan.Would, "then prune what no rule keeps")
		}
		return plan, nil
	})
}

// planOne says what the snapshot of one subvolume would be.
func planOne(f *btrfs.Filesystem, subvolume, directory string, except btrfs.Place, now time.Time) ([]string, error) {
	d, err := f.OpenDirectory(subvolume)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	s, err := d.Subvolume()
	if err != nil {
		return nil, err
	}
	would := []string{fmt.Sprintf("take a snapshot of %s as /%s/%s", nameSubvolume(subvolume), directory, nameOf(subvolume, now, 1))}
	nested, err := f.Nested(s.ID, except)
	if err != nil {
		return nil, err
	}
	for _, n := range nested {
		would = append(would, fmt.Sprintf("leave out %s/%s, a subvolume of its own", strings.TrimSuffix(nameSubvolume(subvolume), "/"), n))
	}
	return would, nil
}

// PlanPrune says what a prune would delete now.
func (r *Runner) PlanPrune(ctx context.Context, uuid btrfs.UUID) (*Plan, error) {
	if err := r.prunable(uuid); err != nil {
		return nil, err
	}
	p, err := r.mounted(uuid)
	if err != nil {
		return nil, err
	}
	return askWorker(ctx, p, p.planPrune)
}

// PlanDelete says what the deletion of a snapshot would do now.
func (r *Runner) PlanDelete(ctx context.Context, uuid btrfs.UUID, name string) (*Plan, error) {
	p, err := r.mounted(uuid)
	if err != nil {
		return nil, err
	}
	return askWorker(ctx, p, func(ctx context.Context) (*Plan, error) { return p.planDelete(ctx, name) })
}
