package direct

// Breakers implements System.
func (l *Linux) Breakers() []Breaker {
	return []Breaker{destroyer{}, &nftFence{}, &iptablesFence{}}
}
