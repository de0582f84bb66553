package election

// Memory is what etcd is to an election, inside one process and without I/O: for tests of what is built on Election.
// All elections made from one Memory see each other. It runs on Go's clock, so testing/synctest controls its leases.
type Memory struct{}

// NewMemory returns an empty Memory.
func NewMemory() *Memory { return &Memory{} }

// New returns an election on m. Config.Client is not used, and the TTL may be as short as a test likes.
func (m *Memory) New(c Config) (Election, error) {
	if c.TTL == 0 {
		c.TTL = DefaultTTL
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return newLoop(c, nil, monotonicClock), nil
}
