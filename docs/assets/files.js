// Search in pages opened as files: browsers start no worker there, so what the worker would do runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      this.waiting = []
      const attach = () => {
        document.body.append(frame)
        this.inner = frame.contentWindow
        this.inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
        const script = this.inner.document.createElement("script")
        script.src = new URL(url, location.href)
        script.onload = () => {
          const waiting = this.waiting
          this.waiting = null
          waiting.forEach(data => this.postMessage(data))
        }
        this.inner.document.body.append(script)
      }
      if (document.body) attach()
      else document.addEventListener("DOMContentLoaded", attach)
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.inner.dispatchEvent(new this.inner.MessageEvent("message", { data }))
    }

    terminate() {}
  }
}
