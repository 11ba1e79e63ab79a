//! Placement of labels.

/// A rectangle in pixels, y downwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rect {
    /// Left edge.
    pub x: f64,
    /// Upper edge.
    pub y: f64,
    /// Width.
    pub w: f64,
    /// Height.
    pub h: f64,
}

impl Rect {
    /// Area that both cover.
    pub fn overlap(&self, other: &Self) -> f64 {
        let side = |a: f64, an: f64, b: f64, bn: f64| ((a + an).min(b + bn) - a.max(b)).max(0.0);
        side(self.x, self.w, other.x, other.w) * side(self.y, self.h, other.y, other.h)
    }

    /// Area outside of another rectangle.
    pub fn outside(&self, frame: &Self) -> f64 {
        self.w * self.h - self.overlap(frame)
    }
}

/// Approximate width of a text in a sans-serif font, in pixels; rather too wide than too narrow.
pub fn width(text: &str, size: f64) -> f64 {
    let em = |c: char| match c {
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' | ' ' => 0.33,
        'm' | 'w' | 'M' | 'W' | '@' | '%' => 0.95,
        c if c.is_ascii_uppercase() => 0.71,
        c if (c as u32) < 0x1100 => 0.61,
        _ => 1.0,
    };
    size * text.chars().map(em).sum::<f64>()
}

/// A text cut to a number of characters.
pub fn shortened(text: &str, characters: usize) -> String {
    if text.chars().count() <= characters {
        return text.to_owned();
    }
    let kept: String = text.chars().take(characters.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// The place of a label near one of some points: where it overlaps least with occupied places and with the outside of the
/// frame. Earlier points and places are preferred.
pub fn beside(points: &[(f64, f64)], (w, h): (f64, f64), taken: &[Rect], frame: &Rect) -> Option<Rect> {
    const GAP: f64 = 7.0;
    let around = |(x, y): (f64, f64)| {
        [
            (x + GAP, y - h / 2.0),
            (x - w / 2.0, y - GAP - h),
            (x - GAP - w, y - h / 2.0),
            (x - w / 2.0, y + GAP),
            (x + GAP * 0.6, y - GAP * 0.6 - h),
            (x - GAP * 0.6 - w, y - GAP * 0.6 - h),
            (x + GAP * 0.6, y + GAP * 0.6),
            (x - GAP * 0.6 - w, y + GAP * 0.6),
        ]
    };
    let places = points.iter().flat_map(|p| around(*p)).map(|(x, y)| Rect { x, y, w, h });
    const AIR: f64 = 2.5;
    let cost = |r: &Rect| {
        let airy = Rect { x: r.x - AIR, y: r.y, w: r.w + 2.0 * AIR, h: r.h };
        taken.iter().map(|t| t.overlap(&airy)).sum::<f64>() + 4.0 * r.outside(frame)
    };
    // The first of equal places.
    places.map(|r| (cost(&r), r)).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, r)| r)
}

/// Moves heights as little as possible, so that neighbours are `gap` apart, within `low..=high` if there is room. The order
/// of the list and of the heights is kept.
pub fn apart(heights: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..heights.len()).collect();
    order.sort_by(|a, b| heights[*a].total_cmp(&heights[*b]));
    // Groups of labels that touch: indices and the height of the first. Groups that collide become one around their mean.
    let mut groups: Vec<(Vec<usize>, f64)> = Vec::new();
    let extent = |members: &[usize]| gap * (members.len() as f64 - 1.0);
    for at in order {
        groups.push((vec![at], heights[at]));
        while let [.., (before, top), (members, start)] = groups.as_slice()
            && top + extent(before) + gap > *start
        {
            let members: Vec<usize> = before.iter().chain(members).copied().collect();
            let middle = members.iter().map(|m| heights[*m]).sum::<f64>() / members.len() as f64;
            let start = middle - extent(&members) / 2.0;
            let start = start.min(high - extent(&members)).max(low);
            groups.truncate(groups.len() - 2);
            groups.push((members, start));
        }
        if let Some((members, start)) = groups.last_mut() {
            *start = start.min(high - extent(members)).max(low);
        }
    }
    let mut moved = heights.to_vec();
    for (members, start) in groups {
        for (i, member) in members.into_iter().enumerate() {
            moved[member] = start + gap * i as f64;
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels_avoid_one_another_and_stay_inside() {
        let frame = Rect { x: 0.0, y: 0.0, w: 200.0, h: 100.0 };
        let first = beside(&[(100.0, 50.0)], (40.0, 12.0), &[], &frame).unwrap();
        assert_eq!((first.x, first.y), (107.0, 44.0));
        let second = beside(&[(100.0, 50.0)], (40.0, 12.0), &[first], &frame).unwrap();
        assert_eq!(second.overlap(&first), 0.0);
        let at_the_edge = beside(&[(195.0, 50.0)], (40.0, 12.0), &[], &frame).unwrap();
        assert_eq!(at_the_edge.outside(&frame), 0.0);
        assert_eq!(beside(&[], (40.0, 12.0), &[], &frame), None);
    }

    #[test]
    fn texts_are_measured_and_cut_by_characters() {
        assert!(width("illi", 10.0) < width("mmmm", 10.0));
        assert!(width("日本", 10.0) == 20.0);
        assert_eq!(shortened("日本語の文", 4), "日本語…");
        assert_eq!(shortened("short", 5), "short");
    }

    proptest! {
        #[test]
        fn heights_end_up_apart_in_their_order(heights in prop::collection::vec(0.0..300.0f64, 0..9)) {
            let moved = apart(&heights, 15.0, 0.0, 300.0);
            prop_assert!(moved.iter().all(|m| (-1e-9..=300.0 + 1e-9).contains(m)), "{moved:?}");
            for (i, a) in moved.iter().enumerate() {
                for (j, b) in moved.iter().enumerate() {
                    prop_assert!(i == j || (a - b).abs() >= 15.0 - 1e-9, "{moved:?}");
                    prop_assert!(heights[i] >= heights[j] || a < b);
                }
            }
        }

        #[test]
        fn heights_apart_already_stay(first in 0.0..100.0f64, steps in prop::collection::vec(16.0..40.0f64, 0..5)) {
            let heights: Vec<f64> = std::iter::once(first)
                .chain(steps.iter().scan(first, |at, s| { *at += s; Some(*at) }))
                .collect();
            prop_assert_eq!(apart(&heights, 15.0, 0.0, 300.0), heights);
        }
    }
}
