package election

// Candidate is a living master, as Assign sees it.
type Candidate struct {
	Master    string   `json:"master"`
	Preferred []string `json:"preferred"` // shards whose source it has
	Withdrawn []string `json:"withdrawn"` // shards that it does not stand for; it stands for all others
}

// Assign says in which order the candidates should try for each shard that has no leader.
func Assign(vacant []string, leaders map[string]string, candidates []Candidate) map[string][]string {
	return nil
}
