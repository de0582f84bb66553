package etcd

import "testing"

func TestGrow(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t)
	m1 := f.master("m1")
	m1.start(true)
	m1.works()
	m1.steer()
	m1.shape("m1", "")
	m2 := f.master("m2")
	m2.start(false)
	m2.works() // as a client, and when it has become a learner too
	m1.shape("m1", "m2")
	m3 := f.master("m3")
	m3.start(false)
	m1.shape("m1 m2 m3", "")
	m4 := f.master("m4")
	m4.start(false)
	m1.shape("m1 m2 m3", "m4")
	f.master("m5").start(false)
	m6 := f.master("m6")
	m6.start(false)
	m1.shape("m1 m2 m3 m4 m5", "")
	m6.works()
	if status := m6.member.Status(); status.Running || status.MemberID != 0 || status.Err != nil {
		t.Errorf("the sixth is %+v", status)
	}
	seats, err := Members(t.Context(), m6.etcd, m6.routes)
	if err != nil {
		t.Fatal(err)
	}
	roles := map[string]int{}
	for _, name := range []string{"m1", "m2", "m3", "m4", "m5", "m6"} {
		roles[Role(seats, name)]++
	}
	if roles["leader"] != 1 || roles["voter"] != 4 || roles["client"] != 1 {
		t.Errorf("roles: %v", roles)
	}
	// Voters end one way and the other: the rest goes on, and so do the clients of those that ended.
	m1.stop()
	m6.works()
	m2.works()
	m3.crash()
	m6.works()
	m2.works()
}
