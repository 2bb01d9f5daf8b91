// Included inside the kernel namespace, after the vector wrapper.

// e^x within 2 ulp: 2^n · p(r), |r| ≤ ln 2 / 2, p the Taylor polynomial of degree 7. Below -87.3: 1.2e-38 instead of 0
// or a denormal; NaN stays NaN.
inline V exp(V x) {
  x = smaller(set1(88.3762F), larger(set1(-87.3365F), x));
  const V n = round_even(mul(x, set1(1.44269504F)));
  V r = fma(n, set1(-0.693145752F), x);  // ln 2 in two parts: the first has 15 digits, so that n times it is exact
  r = fma(n, set1(-1.42860677e-6F), r);
  V p = set1(1.0F / 5040);
  p = fma(p, r, set1(1.0F / 720));
  p = fma(p, r, set1(1.0F / 120));
  p = fma(p, r, set1(1.0F / 24));
  p = fma(p, r, set1(1.0F / 6));
  p = fma(p, r, set1(0.5F));
  p = fma(p, r, set1(1));
  p = fma(p, r, set1(1));
  return scale_by_power(p, n);
}
