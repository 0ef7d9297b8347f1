package trainer

import "math"

// An optimiser moves the parameters of a head against their gradients.
type optimiser interface {
	// step moves all parameters at a learning rate.
	step(rate float64)
}

// An adamW is the optimiser of Loshchilov and Hutter, "Decoupled Weight Decay
// Regularization", algorithm 2.
type adamW struct {
	params []param
	m, v   [][]float32
	steps  int
	decay  float64
}

func newAdamW(params []param, decay float64) *adamW {
	a := &adamW{params: params, decay: decay}
	for _, p := range params {
		a.m, a.v = append(a.m, make([]float32, len(p.value))), append(a.v, make([]float32, len(p.value)))
	}
	return a
}

func (a *adamW) step(rate float64) {
	const beta1, beta2, epsilon = .9, .999, 1e-8
	a.steps++
	// With m/c1 and √(v/c2), the corrections for starting at zero, taken out of
	// the loop.
	c1, c2 := 1-math.Pow(beta1, float64(a.steps)), math.Sqrt(1-math.Pow(beta2, float64(a.steps)))
	keep, move, eps := float32(1-rate*a.decay), float32(rate*c2/c1), float32(epsilon*c2)
	for i, p := range a.params {
		m, v, value := a.m[i][:len(p.grad)], a.v[i][:len(p.grad)], p.value[:len(p.grad)]
		for j, g := range p.grad {
			m[j] += (1 - beta1) * (g - m[j])
			v[j] += (1 - beta2) * (g*g - v[j])
			value[j] = keep*value[j] - move*m[j]/(float32(math.Sqrt(float64(v[j])))+eps)
		}
	}
}

// An sgd is stochastic gradient descent with Nesterov momentum as PyTorch has
// it, and weight decay in the gradient.
type sgd struct {
	params   []param
	velocity [][]float32
	decay    float32
}

func newSGD(params []param, decay float64) *sgd {
	s := &sgd{params: params, decay: float32(decay)}
	for _, p := range params {
		s.velocity = append(s.velocity, make([]float32, len(p.value)))
	}
	return s
}

func (s *sgd) step(rate float64) {
	const momentum = .9
	for i, p := range s.params {
		velocity, value := s.velocity[i][:len(p.grad)], p.value[:len(p.grad)]
		for j, g := range p.grad {
			g += s.decay * value[j]
			velocity[j] = momentum*velocity[j] + g
			value[j] -= float32(rate) * (g + momentum*velocity[j])
		}
	}
}

// rateAt is the share of the learning rate at a share of the steps: half a
// cosine; or the steps of the authors, a tenth of it from 1/2, a hundredth from
// 2/3, a thousandth from 5/6 of the way.
func (s Schedule) rateAt(share float64) float64 {
	if s == ScheduleCosine {
		return (1 + math.Cos(math.Pi*share)) / 2
	}
	rate := 1.
	for _, at := range []float64{1. / 2, 2. / 3, 5. / 6} {
		if share >= at {
			rate /= 10
		}
	}
	return rate
}
