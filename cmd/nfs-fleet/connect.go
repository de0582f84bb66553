package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"

	"github.com/spf13/pflag"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// connection is how the commands reach a master.
type connection struct {
	servers   string // --server
	token     string // --token
	tokenFile string // --token-file
	user      string // on whose behalf: user@host
}

func (c *connection) bind(fs *pflag.FlagSet) {
	fs.StringVar(&c.servers, "server", "", "`address` of a master, or of several with commas between: the first that answers (NFS_FLEET_SERVER;\ndefault: "+console.DefaultServer+", or the masters that the token names)")
	fs.StringVar(&c.token, "token", "", "publish `token`, as \"nfs-fleet token create --shard\" prints it (NFS_FLEET_TOKEN; ps shows what is given here)")
	fs.StringVar(&c.tokenFile, "token-file", "", "`file` that holds the token")
}

// client returns the client of the masters that the flags and the environment name.
func (a *app) client() (*console.Client, error) {
	cfg := console.ClientConfig{User: a.connection.user}
	servers := a.servers
	if servers == "" {
		servers = os.Getenv("NFS_FLEET_SERVER")
	}
	if servers != "" {
		cfg.Servers = strings.Split(servers, ",")
	}
	switch {
	case a.token != "" && a.tokenFile != "":
		return nil, errors.New("--token and --token-file are two tokens: give one")
	case a.token != "":
		cfg.Token = a.token
	case a.tokenFile != "":
		b, err := os.ReadFile(a.tokenFile)
		if err != nil {
			return nil, console.Errorf(console.ErrInvalid, "--token-file: %w", err)
		}
		if cfg.Token = strings.TrimSpace(string(b)); cfg.Token == "" {
			return nil, console.Errorf(console.ErrInvalid, "--token-file %s is empty", a.tokenFile)
		}
	case !strings.HasPrefix(strings.TrimSpace(servers), "http://"): // a master of this machine wants none, whatever the environment holds
		cfg.Token = os.Getenv("NFS_FLEET_TOKEN")
	}
	return console.Connect(cfg)
}

// whoami is who runs this command, for the history: who became root is told by sudo.
func whoami() string {
	name := os.Getenv("SUDO_USER")
	if name == "" {
		u, err := user.Current()
		if err != nil {
			return fmt.Sprintf("uid %d@%s", os.Getuid(), hostname())
		}
		name = u.Username
	}
	return name + "@" + hostname()
}
