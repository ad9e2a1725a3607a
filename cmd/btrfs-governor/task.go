package main

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// A task runs until ctx is done or it fails, and leaves nothing behind.
type task interface {
	Run(ctx context.Context) error
}

// runTasks runs tasks until ctx is done or one of them fails, which ends all.
func runTasks(ctx context.Context, tasks []task) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, t := range tasks {
		group.Go(func() error { return t.Run(ctx) })
	}
	return group.Wait()
}
