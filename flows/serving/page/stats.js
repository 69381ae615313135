// Figures of the last ten minutes, a point a second, asked for while somebody looks at them.

const KEPT_SECONDS = 600;

const stats = {
  points: [], halves: [], now: 0, shown: false, timer: 0, asking: false, listeners: [],

  watch(section) {
    new IntersectionObserver(([entry]) => { this.shown = entry.isIntersecting; this.turn(); }, {rootMargin: "200px"}).observe(section);
    document.addEventListener("visibilitychange", () => this.turn());
  },

  turn() {
    clearInterval(this.timer);
    if (!this.shown || document.hidden) return;
    this.timer = setInterval(() => this.read(), 1000);
    this.read();
  },

  async read() {
    if (this.asking) return;
    this.asking = true;
    try {
      const last = this.points.length ? this.points[this.points.length - 1].time : null;
      const answer = await asked("GET", address("/v1/stats", {since: last}));
      if (answer.now < this.now) this.points = []; // another server than before
      const fresh = answer.points.filter(point => last === null || point.time > last || answer.now < this.now);
      this.now = answer.now;
      this.points = [...this.points, ...fresh].filter(point => point.time > answer.now - KEPT_SECONDS - 1);
      this.halves = answer.halves;
      complain($("stats-error"), null);
      for (const listener of this.listeners) listener();
    } catch (error) {
      complain($("stats-error"), error);
    } finally {
      this.asking = false;
    }
  },
};

// The last second in which something is known.
const latest = (points, field) => { for (let at = points.length - 1; at >= 0; at--) if (points[at][field] !== null) return points[at][field]; return null; };
// A mean over the last ten seconds, so that it can be read.
function mean(points, field) {
  const some = points.slice(-10).map(point => point[field]).filter(value => value !== null);
  return some.length ? some.reduce((a, b) => a + b, 0) / some.length : null;
}
