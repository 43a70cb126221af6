package stored

import (
	"errors"
	"fmt"
)

// task is something that runs beside the rest.
type task struct{ done chan error }

func start(run func() error) task {
	t := task{make(chan error, 1)}
	go func() {
		err := errors.New("panic")
		defer func() {
			if p := recover(); p != nil { // it must not end the process, as it would not in the request's own goroutine
				err = fmt.Errorf("panic: %v", p)
			}
			t.done <- err
		}()
		err = run()
	}()
	return t
}

// done is a task that has ended.
func done(err error) task {
	t := task{make(chan error, 1)}
	t.done <- err
	return t
}

func (t task) wait() error { return <-t.done }
