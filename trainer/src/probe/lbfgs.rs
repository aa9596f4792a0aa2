//! L-BFGS (Nocedal and Wright, algorithm 7.5) with a bisecting line search (Lewis and Overton), which also copes with
//! the kinks of rectifiers.
//!
//! `argmin` has L-BFGS too, but asks for a value and its gradient in two calls, each of which passes over all the data;
//! and `linfa-logistic`, which builds on it, knows no weights for unbalanced classes.

use std::collections::VecDeque;

/// Pairs of steps and gradient changes that are remembered.
const MEMORY: usize = 10;
/// A step is short enough once the value falls by this share of what the slope promises ...
const DECREASE: f64 = 1e-4;
/// ... and long enough once the slope has fallen to this share.
const FLATTER: f64 = 0.9;

/// Walks from `x` downhill and returns where it ends: where the gradient's largest part is below `tolerance`, where no
/// step helps, or after `steps` steps. `f` returns its value and writes its gradient.
pub(crate) fn minimise(
    mut f: impl FnMut(&[f64], &mut [f64]) -> f64,
    mut x: Vec<f64>,
    steps: usize,
    tolerance: f64,
) -> Vec<f64> {
    let mut gradient = vec![0.0; x.len()];
    let mut value = f(&x, &mut gradient);
    let mut memory: VecDeque<Pair> = VecDeque::with_capacity(MEMORY);
    for _ in 0..steps {
        if gradient.iter().all(|g| g.abs() < tolerance) {
            break;
        }
        let direction = direction(&gradient, &memory);
        let first = if memory.is_empty() { 1.0 / dot(&gradient, &gradient).sqrt() } else { 1.0 };
        let Some(next) = search(&mut f, &x, value, &gradient, &direction, first) else { break };
        let step: Vec<f64> = next.x.iter().zip(&x).map(|(a, b)| a - b).collect();
        let change: Vec<f64> = next.gradient.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        let curvature = dot(&step, &change);
        if curvature > 1e-12 * dot(&change, &change) {
            if memory.len() == MEMORY {
                memory.pop_front();
            }
            memory.push_back(Pair { step, change, curvature });
        }
        (x, value, gradient) = (next.x, next.value, next.gradient);
    }
    x
}

struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    curvature: f64,
}

struct Point {
    x: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

/// The two-loop recursion: minus the approximate inverse Hessian times the gradient.
fn direction(gradient: &[f64], memory: &VecDeque<Pair>) -> Vec<f64> {
    let mut d: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut shares = Vec::with_capacity(memory.len());
    for pair in memory.iter().rev() {
        let share = dot(&pair.step, &d) / pair.curvature;
        add(&mut d, -share, &pair.change);
        shares.push(share);
    }
    if let Some(last) = memory.back() {
        let scale = last.curvature / dot(&last.change, &last.change);
        d.iter_mut().for_each(|d| *d *= scale);
    }
    for (pair, share) in memory.iter().zip(shares.into_iter().rev()) {
        let back = dot(&pair.change, &d) / pair.curvature;
        add(&mut d, share - back, &pair.step);
    }
    d
}

/// A point along `direction` that is lower and flatter; `None` where rounding leaves no such point.
fn search(
    f: &mut impl FnMut(&[f64], &mut [f64]) -> f64,
    x: &[f64],
    value: f64,
    gradient: &[f64],
    direction: &[f64],
    first: f64,
) -> Option<Point> {
    let slope = dot(gradient, direction);
    let (mut low, mut high, mut t) = (0.0, f64::INFINITY, first);
    let mut lower = None;
    for _ in 0..40 {
        let mut next = x.to_vec();
        add(&mut next, t, direction);
        let mut point = Point { value: 0.0, gradient: vec![0.0; x.len()], x: next };
        point.value = f(&point.x, &mut point.gradient);
        if !point.value.is_finite() || point.value > value + DECREASE * t * slope {
            high = t;
        } else if dot(&point.gradient, direction) < FLATTER * slope {
            low = t;
            lower = Some(point);
        } else {
            return Some(point);
        }
        t = if high.is_finite() { (low + high) / 2.0 } else { 2.0 * low };
    }
    lower
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `a += scale * b`.
fn add(a: &mut [f64], scale: f64, b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += scale * b);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_lowest_point() {
        fn check(f: impl FnMut(&[f64], &mut [f64]) -> f64, from: &[f64], expected: &[f64]) {
            let found = minimise(f, from.to_vec(), 500, 1e-9);
            let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 1e-5, "{found:?} is not {expected:?}");
        }
        // Rosenbrock's valley.
        let valley = |x: &[f64], g: &mut [f64]| {
            let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
            (g[0], g[1]) = (-2.0 * a - 400.0 * x[0] * b, 200.0 * b);
            a * a + 100.0 * b * b
        };
        check(valley, &[-1.2, 1.0], &[1.0, 1.0]);
        // An ill-conditioned bowl in thirty dimensions.
        let bowl = |x: &[f64], g: &mut [f64]| {
            let mut sum = 0.0;
            for (i, (x, g)) in x.iter().zip(g).enumerate() {
                let (scale, off) = (1.2f64.powi(i as i32), x - i as f64);
                *g = scale * off;
                sum += scale * off * off / 2.0;
            }
            sum
        };
        check(bowl, &[0.0; 30], &std::array::from_fn::<f64, 30, _>(|i| i as f64));
        // With a kink beside the lowest point.
        let kink = |x: &[f64], g: &mut [f64]| {
            g[0] = x[0] - 0.5 + if x[0] > 0.0 { 0.25 } else { 0.0 };
            (x[0] - 0.5).powi(2) / 2.0 + 0.25 * x[0].max(0.0)
        };
        check(kink, &[-7.0], &[0.25]);
    }

    #[test]
    fn stays_where_it_starts_if_that_is_the_lowest_point() {
        let found = minimise(
            |x, g| {
                g[0] = 2.0 * x[0];
                x[0] * x[0]
            },
            vec![0.0],
            10,
            1e-9,
        );
        assert_eq!(found, [0.0]);
    }
}
