// The page about the API, for whoever hears it or uses a keyboard: its landmarks and headings, and no
// link inside a button. Each operation keeps its address.
window.pullwakeDocs = ({ React }) => {
  const within = (element, attributes) => (Original) => (props) =>
    React.createElement(element, attributes, React.createElement(Original, props));
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
      DeepLink: () => ({ text }) => React.createElement("span", null, text),
    },
  };
};
