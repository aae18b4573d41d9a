//! Drawing a workflow: layers from top to bottom, as inline SVG.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use coral_core::GraphData;

use crate::report::{Report, State, Step};
use crate::text::{duration, escape, shortened};

const NODE_W: f64 = 196.0;
const NODE_H: f64 = 58.0;
const GAP_X: f64 = 22.0;
const GAP_Y: f64 = 54.0;
/// A long edge needs this much room where it passes a layer.
const PASS_W: f64 = 26.0;
const MARGIN: f64 = 14.0;

/// Sweeps that bring each layer into the order of its neighbours.
const SWEEPS: usize = 8;

/// A place in a layer: a step, or where an edge that spans several layers passes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Slot {
    step: Option<usize>,
    x: f64,
}

impl Slot {
    fn width(&self) -> f64 {
        if self.step.is_some() { NODE_W } else { PASS_W }
    }
}

/// The graph of `report` with the states of its steps. Edges that follow from others are left
/// out: with `a → b → c`, an edge `a → c` would only hide the way the work takes.
pub fn svg(report: &Report) -> String {
    let edges = reduced(&edges(&report.data));
    let steps: Vec<&Step> = report.outer().collect();
    let layout = Layout::new(steps.len(), &edges);
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg class=\"graph\" viewBox=\"0 0 {:.0} {:.0}\" style=\"max-width:{:.0}px\" role=\"img\" \
         aria-label=\"The steps of the workflow and their states\">\n\
         <defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
         orient=\"auto\"><path d=\"M0 0.8 8 4 0 7.2z\"/></marker></defs>\n",
        layout.width, layout.height, layout.width
    );
    for route in &layout.routes {
        let state = |at: usize| steps.get(at).map(|step| step.state);
        let idle = [route.from, route.to].into_iter().any(|at| state(at) == Some(State::Skipped));
        let _ = writeln!(
            out,
            "<path class=\"edge{}\" marker-end=\"url(#tip)\" d=\"{}\"/>",
            if idle { " idle" } else { "" },
            route.curve()
        );
    }
    for (at, step) in steps.iter().enumerate() {
        let Some((x, y)) = layout.place(at) else { continue };
        let detail = match step.state {
            State::Skipped => "skipped".to_owned(),
            State::Waiting | State::Running => step.state.as_str().to_owned(),
            State::Succeeded | State::Failed => {
                format!("{} · {}", step.state.as_str(), duration(step.duration_ms))
            }
        };
        let middle = NODE_W / 2.0;
        let _ = writeln!(
            out,
            "<a href=\"#step-{name}\"><g class=\"node {state}\" transform=\"translate({x:.1} {y:.1})\"><title>{full}</title>\
             <rect width=\"{NODE_W}\" height=\"{NODE_H}\" rx=\"9\"/>\
             <text class=\"name\" x=\"{middle}\" y=\"19\">{shown}</text>\
             <text x=\"{middle}\" y=\"34.5\">{agent}</text>\
             <text class=\"detail\" x=\"{middle}\" y=\"49\">{detail}</text></g></a>",
            name = escape(&step.name),
            state = step.state.as_str(),
            full = escape(&format!(
                "{} ({}){}",
                step.name,
                step.agent,
                step.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default()
            )),
            shown = escape(&shortened(&step.name, 27)),
            agent = escape(&if step.agent == step.name {
                step.phase.to_string()
            } else {
                shortened(&step.agent, 31)
            }),
        );
    }
    out.push_str("</svg>");
    out
}

/// The edges as pairs of step numbers.
fn edges(graph: &GraphData) -> BTreeSet<(usize, usize)> {
    let number: BTreeMap<&str, usize> =
        graph.steps.iter().enumerate().map(|(at, step)| (&*step.name, at)).collect();
    let mut edges = BTreeSet::new();
    for (to, step) in graph.steps.iter().enumerate() {
        let before =
            step.inputs.iter().map(|input| &*input.step).chain(step.after.iter().map(|name| &**name));
        edges.extend(before.filter_map(|name| Some((*number.get(name)?, to))));
    }
    edges
}

/// The edges without those that follow from others.
fn reduced(edges: &BTreeSet<(usize, usize)>) -> BTreeSet<(usize, usize)> {
    let mut after: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (from, to) in edges {
        after.entry(*from).or_default().insert(*to);
    }
    let reaches = |from: usize, to: usize| {
        let mut seen = BTreeSet::new();
        let mut stack = vec![from];
        while let Some(at) = stack.pop() {
            if at == to {
                return true;
            }
            if seen.insert(at) {
                stack.extend(after.get(&at).into_iter().flatten());
            }
        }
        false
    };
    let follows = |(from, to): &(usize, usize)| {
        after.get(from).into_iter().flatten().any(|other| other != to && reaches(*other, *to))
    };
    edges.iter().filter(|edge| !follows(edge)).copied().collect()
}

/// An edge with the points that it passes.
struct Route {
    from: usize,
    to: usize,
    points: Vec<(f64, f64)>,
}

impl Route {
    fn curve(&self) -> String {
        let mut path = String::new();
        let mut last: Option<(f64, f64)> = None;
        for (x, y) in &self.points {
            let _ = match last {
                None => write!(path, "M{x:.1} {y:.1}"),
                Some((x0, y0)) => {
                    let bend = (y - y0) / 2.0;
                    write!(path, "C{x0:.1} {:.1} {x:.1} {:.1} {x:.1} {y:.1}", y0 + bend, y - bend)
                }
            };
            last = Some((*x, *y));
        }
        path
    }
}

struct Layout {
    layers: Vec<Vec<Slot>>,
    routes: Vec<Route>,
    width: f64,
    height: f64,
}

impl Layout {
    fn new(steps: usize, edges: &BTreeSet<(usize, usize)>) -> Self {
        let rank = ranks(steps, edges);
        let depth = rank.iter().max().map_or(0, |last| last + 1);
        let mut layers: Vec<Vec<Slot>> = vec![Vec::new(); depth];
        for (step, layer) in rank.iter().enumerate() {
            if let Some(layer) = layers.get_mut(*layer) {
                layer.push(Slot { step: Some(step), x: 0.0 });
            }
        }
        // Each edge becomes a chain of slots, one a layer: (layer, place in it).
        let mut chains: Vec<Vec<(usize, usize)>> = Vec::new();
        let first_place = |layers: &[Vec<Slot>], step: usize| {
            let layer = rank.get(step).copied().unwrap_or_default();
            let place =
                layers.get(layer).and_then(|slots| slots.iter().position(|slot| slot.step == Some(step)));
            (layer, place.unwrap_or_default())
        };
        for (from, to) in edges {
            let (start, end) = (first_place(&layers, *from), first_place(&layers, *to));
            let mut chain = vec![start];
            for (at, layer) in layers.iter_mut().enumerate().take(end.0).skip(start.0 + 1) {
                chain.push((at, layer.len()));
                layer.push(Slot { step: None, x: 0.0 });
            }
            chain.push(end);
            chains.push(chain);
        }
        let order = ordered(&layers, &chains);
        spread(&mut layers, &order, &chains);
        let (left, right) = layers.iter().flatten().fold((f64::MAX, f64::MIN), |(left, right), slot| {
            (left.min(slot.x - slot.width() / 2.0), right.max(slot.x + slot.width() / 2.0))
        });
        for slot in layers.iter_mut().flatten() {
            slot.x += MARGIN - left;
        }
        let top = |layer: usize| MARGIN + layer as f64 * (NODE_H + GAP_Y);
        let routes = edges
            .iter()
            .zip(&chains)
            .map(|((from, to), chain)| {
                let mut points = Vec::new();
                for (i, (layer, place)) in chain.iter().enumerate() {
                    let x = layers.get(*layer).and_then(|slots| slots.get(*place)).map_or(0.0, |slot| slot.x);
                    if i > 0 {
                        points.push((x, top(*layer)));
                    }
                    if i + 1 < chain.len() {
                        points.push((x, top(*layer) + NODE_H));
                    }
                }
                Route { from: *from, to: *to, points }
            })
            .collect();
        Layout {
            width: (right - left).max(0.0) + 2.0 * MARGIN,
            height: depth as f64 * (NODE_H + GAP_Y) - GAP_Y + 2.0 * MARGIN,
            layers,
            routes,
        }
    }

    /// The upper left corner of a step.
    fn place(&self, step: usize) -> Option<(f64, f64)> {
        self.layers.iter().enumerate().find_map(|(layer, slots)| {
            let slot = slots.iter().find(|slot| slot.step == Some(step))?;
            Some((slot.x - NODE_W / 2.0, MARGIN + layer as f64 * (NODE_H + GAP_Y)))
        })
    }
}

/// The layer of each step: below all that it waits for.
fn ranks(steps: usize, edges: &BTreeSet<(usize, usize)>) -> Vec<usize> {
    let mut rank = vec![0; steps];
    // A graph that ran has no cycle, so this ends; the bound is for data from elsewhere.
    for _ in 0..steps {
        let mut moved = false;
        for (from, to) in edges {
            let below = rank.get(*from).map_or(0, |layer| layer + 1);
            if let Some(layer) = rank.get_mut(*to).filter(|layer| **layer < below) {
                *layer = below;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    rank
}

/// The order of the slots of each layer, such that few edges cross: each slot goes to the middle
/// of its neighbours, sweep by sweep, down and up.
fn ordered(layers: &[Vec<Slot>], chains: &[Vec<(usize, usize)>]) -> Vec<Vec<usize>> {
    let mut order: Vec<Vec<usize>> = layers.iter().map(|slots| (0..slots.len()).collect()).collect();
    for sweep in 0..SWEEPS {
        let down = sweep % 2 == 0;
        let at: Vec<usize> =
            if down { (0..layers.len()).collect() } else { (0..layers.len()).rev().collect() };
        for layer in at {
            let mut middle: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
            for pair in chains.iter().flat_map(|chain| chain.windows(2)) {
                let [upper, lower] = pair else { continue };
                let (own, other) = if down { (lower, upper) } else { (upper, lower) };
                if own.0 != layer {
                    continue;
                }
                let Some(places) = order.get(other.0) else { continue };
                let place = places.iter().position(|slot| *slot == other.1).unwrap_or_default();
                let (sum, count) = middle.entry(own.1).or_default();
                *sum += (place as f64 + 0.5) / places.len() as f64;
                *count += 1.0;
            }
            if let Some(places) = order.get_mut(layer) {
                let len = places.len() as f64;
                let mut keyed: Vec<(f64, usize)> = places
                    .iter()
                    .enumerate()
                    .map(|(place, slot)| {
                        let stays = (place as f64 + 0.5) / len;
                        (middle.get(slot).map_or(stays, |(sum, count)| sum / count), *slot)
                    })
                    .collect();
                keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
                *places = keyed.into_iter().map(|(_, slot)| slot).collect();
            }
        }
    }
    order
}

/// Gives each slot its x: layers are centred, and slots near their neighbours where there is room.
fn spread(layers: &mut [Vec<Slot>], order: &[Vec<usize>], chains: &[Vec<(usize, usize)>]) {
    for (slots, order) in layers.iter_mut().zip(order) {
        let total: f64 =
            slots.iter().map(Slot::width).sum::<f64>() + GAP_X * slots.len().saturating_sub(1) as f64;
        let mut x = -total / 2.0;
        for slot in order {
            if let Some(slot) = slots.get_mut(*slot) {
                slot.x = x + slot.width() / 2.0;
                x += slot.width() + GAP_X;
            }
        }
    }
    for sweep in 0..SWEEPS {
        let down = sweep % 2 == 0;
        let at: Vec<usize> =
            if down { (0..layers.len()).collect() } else { (0..layers.len()).rev().collect() };
        for layer in at {
            let mut wishes: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
            for pair in chains.iter().flat_map(|chain| chain.windows(2)) {
                let [upper, lower] = pair else { continue };
                for (own, other) in [(lower, upper), (upper, lower)] {
                    if own.0 == layer
                        && let Some(slot) = layers.get(other.0).and_then(|slots| slots.get(other.1))
                    {
                        let (sum, count) = wishes.entry(own.1).or_default();
                        *sum += slot.x;
                        *count += 1.0;
                    }
                }
            }
            let (Some(slots), Some(order)) = (layers.get_mut(layer), order.get(layer)) else { continue };
            settle(slots, order, &wishes);
        }
    }
}

/// Moves the slots of one layer toward where they wish to be, in their order and without overlap.
fn settle(slots: &mut [Slot], order: &[usize], wishes: &BTreeMap<usize, (f64, f64)>) {
    let wish: Vec<f64> = order
        .iter()
        .map(|at| {
            let here = slots.get(*at).map_or(0.0, |slot| slot.x);
            wishes.get(at).map_or(here, |(sum, count)| sum / count)
        })
        .collect();
    let width: Vec<f64> = order.iter().map(|at| slots.get(*at).map_or(0.0, Slot::width)).collect();
    let apart = |i: usize, j: usize| match (width.get(i), width.get(j)) {
        (Some(a), Some(b)) => (a + b) / 2.0 + GAP_X,
        _ => 0.0,
    };
    // The mean of the tightest packing to the left and to the right is without overlap too.
    let (mut left, mut right) = (wish.clone(), wish);
    for i in 1..left.len() {
        let least = left.get(i - 1).copied().unwrap_or_default() + apart(i - 1, i);
        if let Some(x) = left.get_mut(i) {
            *x = x.max(least);
        }
    }
    for i in (1..right.len()).rev() {
        let most = right.get(i).copied().unwrap_or_default() - apart(i - 1, i);
        if let Some(x) = right.get_mut(i - 1) {
            *x = x.min(most);
        }
    }
    for (at, (left, right)) in order.iter().zip(left.iter().zip(&right)) {
        if let Some(slot) = slots.get_mut(*at) {
            slot.x = (left + right) / 2.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(edges: &[(usize, usize)]) -> BTreeSet<(usize, usize)> {
        edges.iter().copied().collect()
    }

    #[test]
    fn edges_that_follow_from_others_are_left_out() {
        assert_eq!(
            reduced(&set(&[(0, 1), (1, 2), (0, 2), (0, 3), (3, 2)])),
            set(&[(0, 1), (1, 2), (0, 3), (3, 2)])
        );
    }

    #[test]
    fn steps_stand_below_what_they_wait_for_and_never_overlap() {
        let edges = set(&[(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4), (0, 5), (4, 6), (5, 6)]);
        let layout = Layout::new(7, &edges);
        let place = |step| layout.place(step).unwrap();
        for (from, to) in &edges {
            assert!(place(*from).1 + NODE_H < place(*to).1, "{from} {to}");
        }
        for a in 0..7 {
            for b in (0..a).filter(|b| place(*b).1 == place(a).1) {
                assert!((place(a).0 - place(b).0).abs() >= NODE_W + GAP_X - 0.01, "{a} {b}");
            }
            assert!(place(a).0 >= 0.0 && place(a).0 + NODE_W <= layout.width, "{a}");
        }
    }

    #[test]
    fn a_graph_without_steps_is_drawn_too() {
        assert!(svg(&Report::default()).contains("<svg"));
    }
}
