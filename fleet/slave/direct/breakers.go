package direct

// Breakers implements System.
func (l *Linux) Breakers() []Breaker {
	return []Breaker{destroyer{}, &nftFence{}, &iptablesFence{}}
}

// Detourers implements System.
func (l *Linux) Detourers() []Detourer {
	return []Detourer{&nftDetourer{lasts: detourTime}, iptablesDetourer{root: l.Root}}
}
