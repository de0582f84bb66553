package main

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nfs-fleet/nfs-fleet/fleet/master"
)

func (a *app) serveCommand() *cobra.Command {
	var (
		path  string
		asked []assignment
		cfg   = master.Default()
	)
	cmd := &cobra.Command{
		Use: "serve", Short: "Run a master: publish, replicate and serve shards over NFSv3",
		Long: "serve runs a master. Settings come from flags, then from the --config file, then from the defaults below.\n\n" +
			"SIGTERM and SIGINT stop it in order within 5 seconds; a second one stops it at once.",
		Example: "  nfs-fleet serve --source www=/srv/www\n  mount -t nfs -o vers=3,ro,nolock,port=2049,mountport=2049,tcp,mountproto=tcp 127.0.0.1:/www /mnt",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := configure(path, asked)
			if err != nil {
				return &usageError{err, cmd.CommandPath()}
			}
			err = a.serve(cmd.Context(), cfg, version, a.logger(cfg.Log))
			if errors.Is(err, context.Canceled) && cmd.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
	bindSettings(cmd.Flags(), &cfg)
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		f.Value = recorder{f.Value, f.Name, &asked}
		if f.DefValue == "[]" {
			f.DefValue = "" // help says in words what an empty list means
		}
	})
	cmd.Flags().StringVar(&path, "config", "", "YAML `file` of settings; flags override it")
	cmd.Flags().SortFlags = false
	return cmd
}

// configure returns the validated settings: what was asked for by flags, over the file, over the defaults.
func configure(path string, asked []assignment) (master.Config, error) {
	cfg := master.Default()
	if path != "" {
		var err error
		if cfg, err = master.Load(path); err != nil {
			return cfg, err
		}
	}
	if err := overlay(&cfg, asked); err != nil {
		return cfg, err
	}
	return cfg, cfg.Validate()
}

// logger returns the logger of a validated configuration.
func (a *app) logger(c master.LogConfig) zerolog.Logger {
	zerolog.ErrorFieldName = "err"
	zerolog.TimeFieldFormat = "2006-01-02T15:04:05.000Z07:00"
	level, err := zerolog.ParseLevel(c.Level)
	if err != nil {
		level = zerolog.InfoLevel // Validate lets none such pass
	}
	var w io.Writer = a.err
	if c.Format == "console" {
		w = zerolog.ConsoleWriter{
			Out: a.err, NoColor: !a.terminal(a.err) || os.Getenv("NO_COLOR") != "", TimeFormat: "2006-01-02 15:04:05.000", TimeLocation: time.Local,
		}
	}
	return zerolog.New(w).Level(level).With().Timestamp().Logger()
}
