//! What the methods' formulas say, against independent sums and finite differences.

use ndarray::{Array2, array};

use super::tga::truncated;
use super::*;

fn made(name: &str, request: &Request) -> Box<dyn Method<f64>> {
    method(name, request).unwrap().unwrap()
}

fn used(method: &mut dyn Method<f64>, w: &Array2<f64>, pass: Pass) -> Array2<f64> {
    let mut used = Array2::from_elem(w.dim(), f64::NAN);
    method.ternarize(w.view(), used.view_mut(), pass);
    used
}

#[test]
fn straight_through_uses_what_the_converter_stores() {
    let w = array![[0.9, -0.1, 0.5, -0.7], [0.2, 0.3, -0.1, 0.0]];
    let twn = used(&mut *made("twn", &Request::default()), &w, Pass::Train);
    // Δ = 0.7·0.55 and 0.7·0.15.
    let (a, b) = (f64::from((2.1f64 / 3.0) as f32), f64::from(0.25f32));
    assert_eq!(twn, array![[a, 0.0, a, -a], [b, b, 0.0, 0.0]]);
    let tensor = Request { granularity: Some(Granularity::Tensor), ..Request::default() };
    let a = f64::from((2.4f64 / 4.0) as f32);
    assert_eq!(used(&mut *made("twn", &tensor), &w, Pass::Train), array![[a, 0.0, a, -a], [0.0, a, 0.0, 0.0]]);
    let b = f64::from(0.15f32);
    assert_eq!(used(&mut *made("bwn", &Request::default()), &w, Pass::Train).row(1), array![b, b, -b, b]);
    assert_eq!(
        used(&mut *made("binaryconnect", &Request::default()), &w, Pass::Train).row(1),
        array![1.0, 1.0, -1.0, 1.0]
    );
}

#[test]
fn scale_of_a_truncated_gaussian() {
    // The sum over the density, in steps.
    let alpha = |mu: f64, sigma: f64, delta: f64| {
        let (mut sum, mut share) = (0.0, 0.0);
        for i in -400_000..400_000 {
            let w = mu + sigma * (f64::from(i) + 0.5) * 2e-5;
            let density = (-0.5 * ((w - mu) / sigma).powi(2)).exp();
            if w.abs() > delta {
                (sum, share) = (sum + w.abs() * density, share + density);
            }
        }
        sum / share
    };
    for (mu, sigma, delta) in [(0.0, 1.0, 0.7), (0.3, 0.5, 0.4), (-0.2, 2.0, 0.0), (0.01, 0.05, 0.1)] {
        let [found, slope] = truncated([mu, sigma], delta);
        assert!((found - alpha(mu, sigma, delta)).abs() < 1e-4 * sigma, "{mu} {sigma} {delta}: {found}");
        let ends = [delta + 1e-6, delta - 1e-6].map(|delta| truncated([mu, sigma], delta)[0]);
        assert!((slope - (ends[0] - ends[1]) / 2e-6).abs() < 1e-6, "{mu} {sigma} {delta}: slope {slope}");
    }
}

/// dL/df through the scale, for a loss Σ c·(α·t) whose codes do not change.
#[test]
fn tga_learns_its_threshold() {
    let mut tga = made("tga", &Request::default());
    let w = array![[0.5, -0.4, 0.02, 1.0], [-0.9, 0.01, 0.3, -0.2]];
    let c = array![[1.0, 2.0, -3.0, 0.5], [-1.0, 4.0, 2.0, 1.5]];
    assert_eq!(tga.learned().unwrap().0, [0.6]);
    let mut gradient = c.clone();
    let now = used(&mut *tga, &w, Pass::Train);
    tga.backward(w.view(), now.view(), gradient.view_mut());
    assert_eq!(gradient, c, "straight through");
    // It is the mean over the 8 weights.
    let found = 8.0 * tga.learned().unwrap().1[0];
    let ends = [1e-6, -1e-6].map(|by| {
        tga.learned().unwrap().0[0] = 0.6 + by;
        (&used(&mut *tga, &w, Pass::Train) * &c).sum()
    });
    assert!((found - (ends[0] - ends[1]) / 2e-6).abs() < 1e-6, "{found}");
}

#[test]
fn esa_goes_from_tanh_to_codes() {
    let mut esa = made("esa", &Request { sparsity_alpha: Some(0.5), ..Request::default() });
    let mut w = array![[0.4, -0.1, 0.25, -0.25], [0.0, 0.0, 0.0, 0.0]];
    esa.start(w.view_mut());
    let trained = used(&mut *esa, &w, Pass::Train);
    // s is TWN's α, the mean of 0.4, 0.25 and 0.25: what is under 0.8·s stays what it was.
    let s = f64::from(0.3_f32);
    assert!((trained[[0, 1]] + 0.1).abs() < 1e-12);
    assert!((trained[[0, 0]] - 0.8 * s).abs() < 1e-12);
    let ternary = used(&mut *esa, &w, Pass::Evaluate);
    assert_eq!(ternary, array![[s, 0.0, s, -s], [0.0, 0.0, 0.0, 0.0]]);
    // Ternary weights are what they were.
    let mut again = made("esa", &Request::default());
    let mut theta = ternary.clone();
    again.start(theta.view_mut());
    assert_eq!(used(&mut *again, &theta, Pass::Evaluate), ternary);
    // Derivatives by w over s, and by s over Σ w².
    let c = array![[1.0, 2.0, -3.0, 0.5], [1.0, 1.0, 1.0, 1.0]];
    let mut gradient = c.clone();
    esa.backward(w.view(), trained.view(), gradient.view_mut());
    let faster = gradient[[0, 0]] * s / c[[0, 0]];
    assert!(faster >= 1.0);
    assert!((&gradient.row(0) - &(&c.row(0) * (faster / s))).iter().all(|difference| difference.abs() < 1e-12));
    let tanh = w.mapv(f64::tanh);
    let found = esa.learned().unwrap().1.to_vec();
    let ends = [1e-6, -1e-6].map(|by| {
        esa.learned().unwrap().0[0] = s + by;
        (&used(&mut *esa, &w, Pass::Train) * &c).row(0).sum()
    });
    let expected = (ends[0] - ends[1]) / 2e-6 / tanh.row(0).mapv(|w| w * w).sum();
    assert!((found[0] - expected).abs() < 1e-9, "{found:?}, {expected}");
    assert_eq!(found[1], 0.0, "a filter of zeros");
    assert_eq!(esa.learned().unwrap().0[1], s, "which has the others' scale");
    let row = gradient.row(1);
    assert!(row.iter().all(|g| (g - faster / s).abs() < 1e-12), "and learns: {row}");
    let mut zeros = Array2::zeros((1, 4));
    esa.start(zeros.view_mut());
    assert_eq!(esa.learned().unwrap().0, [0.5], "1/√n where there are no others");
}

#[test]
fn esa_goes_down_its_penalty_until_weights_settle() {
    let a = 1.0;
    let mut esa = made("esa", &Request { sparsity_alpha: Some(a), ..Request::default() });
    // The barrier is at tanh θ = √(a/2) = 0.707, θ = 0.881.
    let start = array![[0.1, 0.87, 0.89, -0.87, -0.89, 0.0, 2.0]];
    let penalty = |theta: f64| (a - theta.tanh().powi(2)) * theta.tanh().powi(2);
    let mut w = start.clone();
    esa.after_step(w.view_mut(), 1e-4);
    for (&theta, &after) in start.iter().zip(&w) {
        let slope = (penalty(theta + 1e-6) - penalty(theta - 1e-6)) / 2e-6;
        assert!((theta - after - 1e-4 * slope).abs() < 1e-12, "{theta}");
    }
    assert_eq!(esa.settled(start.view()), Some(2));
    // However far a step may go.
    for distance in [0.1, 1e9] {
        let mut w = start.clone();
        (0..300).for_each(|_| esa.after_step(w.view_mut(), distance));
        let codes = w.mapv(|theta: f64| (20.0 * theta.tanh()).round() / 20.0);
        assert_eq!(codes, array![[0.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0]]);
        assert_eq!(esa.settled(w.view()), Some(7));
    }
}

/// Where weights start lies on the right side of the barrier for every a, and where it always was up to 1.
#[test]
fn esa_starts_beyond_its_barrier() {
    for a in [0.05, 0.5, 1.0, 1.2, 1.28, 1.5, 1.8, 1.95, 1.999] {
        let mut esa = made("esa", &Request { sparsity_alpha: Some(a), ..Request::default() });
        let mut w = array![[0.4, -0.01, 0.25, -0.4]];
        esa.start(w.view_mut());
        let start = w[[0, 0]].tanh();
        let nearer = (start - (a / 2.0).sqrt()) / (1.0 - (a / 2.0).sqrt());
        let expected = if a <= 1.0 { start == 0.8f64.atanh().tanh() } else { (0.31..0.32).contains(&nearer) };
        assert!(expected, "a = {a}: {start}, {nearer}");
        (0..2000).for_each(|_| esa.after_step(w.view_mut(), 1e9));
        let codes = w.mapv(|theta: f64| theta.tanh().round());
        assert_eq!([codes[[0, 0]], codes[[0, 1]], codes[[0, 3]]], [1.0, 0.0, -1.0], "a = {a}: {w}");
    }
}

#[test]
fn requests_that_make_no_sense() {
    let refused = |name: &str, request: Request| method::<f32>(name, &request).unwrap_err().to_string();
    assert!(refused("twm", Request::default()).contains("twn, bwn"));
    assert!(refused("bwn", Request { factor: Some(0.5), ..Request::default() }).contains("factor"));
    assert!(refused("esa", Request { sparsity_alpha: Some(2.0), ..Request::default() }).contains("between 0 and 2"));
    assert!(method::<f32>("none", &Request::default()).unwrap().is_none());
}
