// Plays one clip at a time. The file is fetched whole, so that servers without byte ranges are enough.

export class Player {
  constructor(urlOf, changed) {
    Object.assign(this, { urlOf, changed, clip: -1, trouble: "" });
    this.audio = document.createElement("audio");
    this.audio.id = "audio";
    this.audio.hidden = true;
    document.body.append(this.audio);
    for (const name of ["play", "pause", "ended", "timeupdate", "loadedmetadata"]) this.audio.addEventListener(name, changed);
    const follow = () => {
      if (!this.audio.paused) changed();
      requestAnimationFrame(follow);
    };
    requestAnimationFrame(follow);
  }

  get playing() {
    return !this.audio.paused && !this.audio.ended;
  }

  // From a share of its length, or where it was paused.
  async play(clip, share) {
    this.trouble = "";
    try {
      if (clip !== this.clip) {
        this.audio.pause();
        this.clip = clip;
        const answer = await fetch(this.urlOf(clip));
        if (!answer.ok) throw new Error(`the clip's file cannot be read (${answer.status})`);
        const address = URL.createObjectURL(await answer.blob());
        if (clip !== this.clip) return URL.revokeObjectURL(address); // another was picked meanwhile
        if (this.audio.src) URL.revokeObjectURL(this.audio.src);
        this.audio.src = address;
      }
      if (share !== undefined && !this.audio.duration) await new Promise((done) => this.audio.addEventListener("loadedmetadata", done, { once: true }));
      if (share !== undefined) this.audio.currentTime = share * this.audio.duration;
      await this.audio.play();
    } catch (error) {
      if (error.name === "AbortError") return; // paused, or another clip, before it began
      this.clip = -1;
      this.trouble = `Cannot play: ${error.message}`;
      this.changed();
    }
  }

  toggle(clip) {
    if (clip === this.clip && this.playing) this.audio.pause();
    else this.play(clip);
  }
}
