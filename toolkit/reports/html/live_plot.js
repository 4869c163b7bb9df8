// Line charts that are drawn again each second, as SVG. A point has elapsed_s and the values of the series.
const W = 520, H = 190, LEFT = 46, BOTTOM = 22, $ = id => document.getElementById(id);
const text = value => value == null ? "–" : value.toLocaleString("en", {maximumFractionDigits: value >= 100 ? 0 : value >= 10 ? 1 : 2});
function step(span, wanted) {
  const rough = span / wanted, power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].find(factor => factor * power >= rough) * power;
}
function ticks(top, wanted) {
  const by = step(top, wanted);
  return Array.from({length: Math.floor(top / by + 1e-6) + 1}, (_, n) => n * by);
}
function plot(points, series, {limit, scale = 1, top, ago}) {
  const values = points.flatMap(point => series.map(([name]) => point[name])).filter(value => value != null).map(value => value * scale);
  const highest = Math.max(...values, 0) || 1, near = limit != null && limit <= highest * 1.5;
  const reach = Math.max(highest, near ? limit : 0) * 1.05, by = step(reach, 4), high = top ?? by * Math.ceil(reach / by);
  const long = Math.max(points.at(-1)?.elapsed_s ?? 0, 10);
  const x = s => LEFT + s / long * (W - LEFT - 8), y = value => H - BOTTOM - value / high * (H - BOTTOM - 8);
  const parts = ticks(high, 4).map(v => `<line class="grid" x1="${LEFT}" x2="${W - 8}" y1="${y(v)}" y2="${y(v)}"/><text class="tick" x="${LEFT - 6}" y="${y(v) + 4}" text-anchor="end">${text(v)}</text>`);
  const name = s => ago ? (s === 0 ? "now" : `-${text(s)}`) : s === 0 ? "0 s" : text(s);
  parts.push(...ticks(long, 6).map(s => `<text class="tick" x="${x(ago ? long - s : s)}" y="${H - 5}" text-anchor="${ago && s === 0 ? "end" : "middle"}">${name(s)}</text>`));
  if (near) parts.push(`<line class="limit" x1="${LEFT}" x2="${W - 8}" y1="${y(limit)}" y2="${y(limit)}"/>`);
  for (const [name, , colour] of series) {
    let path = "", pen = "M";
    for (const point of points) {
      if (point[name] == null) { pen = "M"; continue; }
      path += `${pen}${x(point.elapsed_s).toFixed(1)} ${y(point[name] * scale).toFixed(1)}`;
      pen = "L";
    }
    parts.push(`<path class="line" d="${path}" style="stroke: var(${colour})"/>`);
  }
  return `<svg viewBox="0 0 ${W} ${H}" role="img">${parts.join("")}</svg>`;
}
function figure(points, [title, caption, series, look]) {
  const keys = series.map(([name, label, colour]) => {
    const last = points.at(-1)?.[name];
    return `<li><i class="key" style="background: var(${colour})"></i>${label} <b>${text(last == null ? null : last * (look.scale ?? 1))}</b></li>`;
  });
  if (look.limit != null) keys.push(`<li><i class="key" style="background: var(--limit)"></i>limit ${text(look.limit)}</li>`);
  return `<figure class="card"><figcaption><h3>${title}</h3><p class="soft">${caption}</p><ul class="keys">${keys.join("")}</ul></figcaption><div class="plot" aria-label="${title}">${plot(points, series, look)}</div></figure>`;
}
