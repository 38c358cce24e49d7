// The page about the API, for whoever hears it or uses a keyboard: its landmarks and headings, and no
// link inside a button. Each operation keeps its address. Swagger UI has dark colours, but not when.
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", colour);
colour();

window.pullwakeDocs = ({ React }) => {
  const within = (element, attributes) => (Original) => (props) =>
    React.createElement(element, attributes, React.createElement(Original, props));
  const mended = (mend) => (Original) => (props) =>
    React.createElement(
      "div",
      { style: { display: "contents" }, ref: (node) => node && mend(node) },
      React.createElement(Original, props),
    );
  return {
    wrapComponents: {
      InfoContainer: within("header", { role: "banner" }),
      // There is one: the server that the page came from.
      ServersContainer: () => () => null,
      authorizeBtn: within("section", { "aria-label": "Credentials" }),
      operations: (Original) => (props) =>
        React.createElement(
          React.Fragment,
          null,
          React.createElement("h2", { className: "pw-unseen" }, "Operations"),
          React.createElement(Original, props),
        ),
      // A table is no landmark, and those of two opened operations would have no names.
      responses: mended((node) => node.querySelector("table[role]")?.removeAttribute("role")),
      JSONSchema202012Accordion: mended((node) => {
        const button = node.querySelector("button");
        if (button.textContent.trim() === "") button.setAttribute("aria-label", "Schema");
      }),
      DeepLink: () => ({ text }) => React.createElement("span", null, text),
    },
  };
};
