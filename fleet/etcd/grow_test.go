package etcd

import "testing"

func TestGrow(t *testing.T) {
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
}
