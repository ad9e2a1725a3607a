package scrub

// damageFinder is replaced below.
type damageFinder struct{}

func (d *damageFinder) close() {}
func (p *pool) findDamage()    {}
func (p *pool) locateDamage()  {}
func (p *pool) damaged()       {}
