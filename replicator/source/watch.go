package source

type notifier interface{}

func newInotify(dir string) (notifier, error) { return nil, nil }

type watcher struct{ complete bool }

func (w *watcher) health() (int, error) { return 0, nil }
